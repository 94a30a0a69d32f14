#!/usr/bin/env bash
# Creates a Cloud TPU slice of any size, trains on all of its hosts, and deletes
# it. Requires gcloud (logged in) and a bucket that the TPU may write to:
#
#   NAME=vemd ZONE=us-west4-a TYPE=v5litepod-16 bash launch/tpu_vm.sh \
#     CONFIG gs://BUCKET/RUN [--config.KEY=VALUE...]
#
# The same command with the same bucket resumes an interrupted run.
set -euo pipefail
NAME=${NAME:-vemd-jax}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
config=$1 workdir=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }

# A slice that existed before is not deleted.
if ! tpu describe "$NAME" >/dev/null 2>&1; then
  tpu create "$NAME" --accelerator-type="$TYPE" --version="$RUNTIME"
  trap 'tpu delete "$NAME" --quiet' EXIT
fi

# Copies the committed source tree to all hosts.
archive=$(mktemp)
git archive --format=tar.gz --output="$archive" HEAD
tpu scp "$archive" "$NAME:vemd_jax.tar.gz" --worker=all
rm "$archive"

# Runs the same command on all hosts; JAX reads the topology from the TPU.
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
  exec "$python" -m vemd_jax.main --distributed "$@"
'
arguments=(--config="$config" --workdir="$workdir" "$@")
tpu ssh "$NAME" --worker=all --command="$(
  printf '%q ' bash -c "$host" train "${arguments[@]}"
)"
