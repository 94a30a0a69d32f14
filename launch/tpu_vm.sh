#!/usr/bin/env bash
# Makes a Cloud TPU slice of any size, trains on all of its hosts, and removes
# it. Needs gcloud, logged in, and a bucket that the TPU may write to:
#
#   NAME=vemd ZONE=us-west4-a TYPE=v5litepod-16 bash launch/tpu_vm.sh \
#     CONFIG gs://BUCKET/RUN [--config.KEY=VALUE...]
#
# Called again with the same bucket it goes on where it stopped.
set -euo pipefail
NAME=${NAME:-vemd-jax}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
config=$1 workdir=$2
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }

# A slice that was there before stays.
if ! tpu describe "$NAME" >/dev/null 2>&1; then
  tpu create "$NAME" --accelerator-type="$TYPE" --version="$RUNTIME"
  trap 'tpu delete "$NAME" --quiet' EXIT
fi

# The same source on all hosts: what is committed here.
archive=$(mktemp)
git archive --format=tar.gz --output="$archive" HEAD
tpu scp "$archive" "$NAME:vemd_jax.tar.gz" --worker=all
rm "$archive"

# The same command on all hosts; JAX asks the TPU who the others are.
host='
  set -euo pipefail
  mkdir -p vemd_jax && cd vemd_jax && tar xzf ../vemd_jax.tar.gz
  export VEMD_ACCELERATOR=tpu
  source launch/environment.sh
  # The Python of the TPU images may be too old.
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
