#!/usr/bin/env bash
# Trains on the GPUs of this machine, with one process for all of them, or with
# one process for each of PROCESSES GPUs:
#
#   bash launch/gpu_host.sh CONFIG WORKDIR [--config.KEY=VALUE...]
#   PROCESSES=8 bash launch/gpu_host.sh CONFIG WORKDIR [--config.KEY=VALUE...]
#
# The same command resumes an interrupted run, also with another PROCESSES. The
# exit code 75 means that a signal stopped the run after saving a checkpoint.
set -euo pipefail
config=$1 workdir=$2
shift 2

# A relative WORKDIR is relative to the caller's working directory.
case $workdir in
  /* | *://*) ;;
  *) workdir=$PWD/$workdir ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export VEMD_ACCELERATOR=${VEMD_ACCELERATOR:-cuda12}
source launch/environment.sh
prepare_environment
arguments=(-m vemd_jax.main --config="$config" --workdir="$workdir" "$@")
processes=${PROCESSES:-1}
if [ "$processes" = 1 ]; then
  exec "$python" "${arguments[@]}"
fi

children=()
# Ctrl-C reaches the processes directly.
trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM
for ((index = 0; index < processes; index++)); do
  JAX_LOCAL_DEVICE_IDS=$index "$python" "${arguments[@]}" \
    --coordinator_address="localhost:${PORT:-8476}" \
    --num_processes="$processes" --process_id="$index" &
  children+=($!)
done
status=0
for child in "${children[@]}"; do
  code=0
  wait "$child" || code=$?
  # A signal to this script also ends the waiting.
  while [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  if [ "$code" != 0 ]; then status=$code; fi
done
exit "$status"
