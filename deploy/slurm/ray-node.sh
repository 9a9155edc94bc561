#!/usr/bin/env bash
# A node's part of ray.sbatch: `ray start`, until the job ends.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=nodes.sh
source "$TANDEM_HOME/deploy/slurm/nodes.sh"

cd "$TANDEM_HOME"
use_network_of "$TANDEM_HEAD"
here=$(address_towards "$TANDEM_HEAD")
# Sockets' paths may be 107 characters long, so the folder's name is short. Slurm kills what is left.
temporary=/tmp/ray-$SLURM_JOB_ID
trap 'rm -rf "$temporary"' EXIT
if [[ $here == "$TANDEM_HEAD" ]]; then
  place=(--head --port="$TANDEM_PORT" --dashboard-host=127.0.0.1 --temp-dir="$temporary")
else
  wait_for_ray $$
  place=(--address="$TANDEM_HEAD:$TANDEM_PORT")
fi
# Not exec: the folder is removed when Ray is gone. On a busy node Ray may not come up in its own time.
stopped=
trap 'stopped=yes; kill -TERM "$ray" 2>/dev/null' TERM
for start in 1 2 3; do
  .venv/bin/ray start "${place[@]}" --node-ip-address="$here" --block --disable-usage-stats \
    --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    --dashboard-agent-listen-port=0 --object-store-memory=1000000000 &
  ray=$!
  # A signal ends the first wait, not Ray.
  wait "$ray" || wait "$ray" || true
  [[ -z $stopped ]] || break
  say "Ray on $SLURMD_NODENAME ended (start $start of 3)"
done
