# shellcheck shell=bash
# Sourced by the batch scripts: where a job's nodes reach each other, and how it is stopped and goes on.
#
#   TANDEM_INTERFACE  the network to use, where nodes have several (ib0, bond0); left out: found
#   TANDEM_HOME       the checkout, on storage that all nodes see; left out: where sbatch was called
#   TANDEM_RANKS      ranks a node; left out: one a GPU, or one
#   TANDEM_REQUEUES   times that a job puts itself back into the queue; left out: 100

say() {
  echo "tandem: $*" >&2
}

# IPv4 addresses of this node that others can reach, an interface and an address a line.
addresses_here() {
  ip -o -4 address show scope global | awk '{split($4, address, "/"); print $2, address[1]}'
}

# The address by which other nodes reach this one. Slurm's own word for the node comes first. The node's
# name is looked up last: Debian maps a host's own name to 127.0.1.1, which is another machine everywhere.
address_of_this_node() {
  local told found
  if [[ -n ${TANDEM_INTERFACE-} ]]; then
    found=$(addresses_here | awk -v name="$TANDEM_INTERFACE" '$1 == name {print $2; exit}')
    if [[ -z $found ]]; then
      say "error: $SLURMD_NODENAME has no address on TANDEM_INTERFACE=$TANDEM_INTERFACE"
      return 1
    fi
    echo "$found"
    return
  fi
  told=$(scontrol show node "$SLURMD_NODENAME" | grep -oP 'NodeAddr=\K\S+')
  [[ $told =~ ^[0-9.]+$ ]] || told=$(getent ahostsv4 "$told" | awk '$1 !~ /^127\./ {print $1; exit}')
  # Of several cards, one that has the address that Slurm uses; else the first.
  addresses_here | awk -v told="$told" 'NR == 1 {first = $2} $2 == told {found = $2} END {print found ? found : first}'
}

# The interface by which this node reaches ADDRESS, which may be its own.
interface_towards() {
  local here
  here=$(addresses_here | awk -v address="$1" '$2 == address {print $1; exit}')
  [[ -n $here ]] && echo "$here" && return
  ip -o -4 route get "$1" | grep -oP ' dev \K\S+'
}

# This node's address on the network on which ADDRESS is.
address_towards() {
  addresses_here | awk -v name="$(interface_towards "$1")" '$1 == name {print $2; exit}'
}

# gloo and NCCL meet by the network of ADDRESS, unless the user chose another.
use_network_of() {
  local interface
  interface=$(interface_towards "$1")
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
  export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
}

# A port that no other job on the node takes.
port_of_this_job() {
  echo $((20000 + SLURM_JOB_ID % 20000))
}

ranks_of_a_node() {
  echo "${TANDEM_RANKS:-${SLURM_GPUS_ON_NODE:-1}}"
}

# Until the head of this job's Ray answers, or process PID has ended.
wait_for_ray() {
  until .venv/bin/ray health-check --address "$TANDEM_HEAD:$TANDEM_PORT" >/dev/null 2>&1; do
    kill -0 "$1" 2>/dev/null || return 1
    sleep 1
  done
}

# The CPUs of one rank.
threads_of_a_rank() {
  local threads=$((${SLURM_CPUS_PER_TASK:-1} / $(ranks_of_a_node)))
  echo $((threads > 0 ? threads : 1))
}

# run_and_requeue step|process COMMAND ...: run it until it ends. If Slurm's signal comes before
# (--signal=B:TERM@300: the time is nearly over, or the job is preempted), pass it on, wait for the
# checkpoint, and put the job back into the queue.
run_and_requeue() {
  local kind=$1 status stopped=
  shift
  "$@" &
  local command=$!
  trap 'stopped=yes; say "asked to stop: waiting for a checkpoint"; ask_to_stop "$kind" "$command"' TERM
  while true; do
    wait "$command" && status=0 || status=$?
    # A signal ends the wait, not the command.
    kill -0 "$command" 2>/dev/null || break
  done
  trap - TERM
  if [[ -z $stopped || $status -eq 0 ]]; then
    return "$status"
  fi
  if ((${SLURM_RESTART_COUNT:-0} >= ${TANDEM_REQUEUES:-100})); then
    say "stopped after ${SLURM_RESTART_COUNT} requeues; the same sbatch goes on (TANDEM_REQUEUES)"
    return "$status"
  fi
  say "stopped; job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
  # Slurm ends this script; where it is slow, nothing else may follow.
  sleep 60
  return "$status"
}

# SIGTERM for a process, or for the tasks of the job's steps: srun itself would take it for a wish to end
# them at once, and kill them after Slurm's KillWait of 30 seconds.
ask_to_stop() {
  if [[ $1 == step ]]; then
    scancel --signal=TERM "$SLURM_JOB_ID"
  else
    kill -TERM "$2" 2>/dev/null
  fi
}
