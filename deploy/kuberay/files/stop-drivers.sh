# Before a head pod goes: ask each `tandem` command in it to stop, and wait until it has. A run that is
# asked writes a checkpoint; Ray alone would take its driver away in the middle of a step.
shopt -s nullglob
drivers=()
for process in /proc/[0-9]*; do
  { mapfile -d '' -t words <"$process/cmdline"; } 2>/dev/null || continue
  # python /usr/local/bin/tandem train ...
  if [[ ${words[1]-} == */tandem ]]; then
    drivers+=("${process#/proc/}")
  fi
done
for driver in "${drivers[@]}"; do
  echo "asking driver $driver to stop"
  kill -TERM "$driver" 2>/dev/null
done
for driver in "${drivers[@]}"; do
  while kill -0 "$driver" 2>/dev/null; do
    sleep 1
  done
done
