#!/usr/bin/env bash
# Trains the demo recipe on the embedded dataset, on the devices of this
# machine. The same command resumes an interrupted run.
#
#   bash launch/local.sh [WORKDIR [--config.KEY=VALUE...]]
set -euo pipefail

# A relative WORKDIR is relative to the caller's working directory.
workdir=${1:-}
if [ -n "$workdir" ] && [ "${workdir#/}" = "$workdir" ]; then
  workdir=$PWD/$workdir
fi
if [ $# -gt 0 ]; then shift; fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment
exec "$python" -m vemd_jax.main --config=configs/group_scenes.py \
  --workdir="${workdir:-runs/group_scenes}" "$@"
