#!/usr/bin/env bash
# What `make demo` runs: data, training on two Ray workers, exact evaluation, recommendations.
#   bash deploy/demo.sh [FOLDER] [WORKERS]
# The data are made once; every run of the script trains into a folder of its own.
set -euo pipefail

folder=${1:-demo}
workers=${2:-2}
tandem=.venv/bin/tandem
data=$folder/data
run=$folder/run-$(date +%Y%m%d-%H%M%S)
mkdir -p "$folder"

show() {
  echo
  echo "\$ tandem $*"
  "$tandem" "$@"
}

if [ ! -e "$data/dataset.json" ]; then
  show synth "$data"
fi
show train demo --data "$data" --out "$run" --workers "$workers"
show evaluate "$run" --split test
show recommend "$run" --user 1 -k 10

.venv/bin/python - "$data" "$run" <<'PYTHON'
import json, sys
from pathlib import Path

data, run = (Path(argument) for argument in sys.argv[1:])
best = json.loads((data / "truth.json").read_text())["best"]["test"]["recall@20"]
measured = json.loads((run / "evaluation.json").read_text())["test"]
rows = [
    ("best possible on these data", best),
    ("this run", measured["recall@20"]),
    ("popularity", measured["popularity"]["recall@20"]),
]
print("\nrecall@20 on the test part")
for name, value in rows:
    print(f"  {name:30}{value:.4f}  {'█' * round(60 * value / best)}")
PYTHON
echo
echo "The run is in $run. Next: tandem prepare YOUR_FILE OUT (README.md, \"Your own data\")."
