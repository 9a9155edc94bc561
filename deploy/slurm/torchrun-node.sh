#!/usr/bin/env bash
# A node's part of torchrun.sbatch.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=nodes.sh
source "$TANDEM_HOME/deploy/slurm/nodes.sh"

use_network_of "$TANDEM_HEAD"
# Ranks write a checkpoint when they are asked to stop: longer than torchrun's own 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(threads_of_a_rank)}

# The batch script's node is where they meet: said, since its own name may mean 127.0.1.1 to it.
head=false
[[ $(address_towards "$TANDEM_HEAD") == "$TANDEM_HEAD" ]] && head=true
cd "$TANDEM_HOME"
exec .venv/bin/python -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --nproc-per-node="$(ranks_of_a_node)" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  --rdzv-endpoint="$TANDEM_HEAD:$TANDEM_PORT" --rdzv-conf="is_host=$head" \
  --local-addr="$(address_towards "$TANDEM_HEAD")" \
  -m trainer.train "$@"
