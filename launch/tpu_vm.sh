#!/usr/bin/env bash
# Creates a Cloud TPU slice of any size, trains on all of its hosts, and deletes
# it. Requires gcloud (logged in) and a bucket that the TPU may write to:
#
#   NAME=vemd ZONE=us-west4-a TYPE=v5litepod-16 bash launch/tpu_vm.sh \
#     CONFIG gs://BUCKET/RUN [--config.KEY=VALUE...]
#
# If the slice is preempted, the script recreates it and resumes the run. After
# any other failure, the same command with the same bucket resumes it.
# MORE=--spot asks for a spot slice.
set -euo pipefail
NAME=${NAME:-vemd-jax}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
config=$1 workdir=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }

create() {
  # shellcheck disable=SC2086
  tpu create "$NAME" --accelerator-type="$TYPE" --version="$RUNTIME" ${MORE:-}
}

# A slice that existed before is not deleted at the end.
if ! tpu describe "$NAME" >/dev/null 2>&1; then
  create
  trap 'tpu delete "$NAME" --quiet' EXIT
fi

# Runs the same command on all hosts; JAX reads the topology from the TPU.
# shellcheck disable=SC2016  # Expanded on the hosts.
host='
  set -euo pipefail
  mkdir -p vemd_jax && cd vemd_jax && tar xzf ../vemd_jax.tar.gz
  export VEMD_ACCELERATOR=tpu
  source launch/environment.sh
  # The Python of the TPU image may be too old.
  if [ ! -x "$python" ] && ! find_python >/dev/null 2>&1; then
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python=3.12 "$venv"
  fi
  prepare_environment gcs
  status=75  # Stopped by a signal, with a checkpoint saved.
  while [ "$status" = 75 ]; do
    status=0
    "$python" -m vemd_jax.main --distributed "$@" || status=$?
  done
  exit "$status"
'
arguments=(--config="$config" --workdir="$workdir" "$@")
command=$(printf '%q ' bash -c "$host" train "${arguments[@]}")
archive=$(mktemp)
git archive --format=tar.gz --output="$archive" HEAD

while true; do
  # Copies the committed source tree to all hosts and runs it.
  status=0
  tpu scp "$archive" "$NAME:vemd_jax.tar.gz" --worker=all &&
    tpu ssh "$NAME" --worker=all --command="$command" || status=$?
  if [ "$status" = 0 ]; then
    break
  fi
  if [ "$(tpu describe "$NAME" --format='value(state)')" = READY ]; then
    exit "$status"
  fi
  tpu delete "$NAME" --quiet
  until create; do  # The zone may have no capacity for a while.
    sleep "${RETRY_SECONDS:-300}"
  done
done
rm "$archive"
