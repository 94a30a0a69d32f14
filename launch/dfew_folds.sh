#!/usr/bin/env bash
# Trains configs/dfew.py on the five folds of DFEW, one after the other, and
# averages WAR and UAR; called again it goes on where it stopped.
#
#   VEMD_CLIP=CLIP bash launch/dfew_folds.sh DATA WORKDIR [--config.KEY=VALUE...]
#
# DATA is what vemd_jax.data.prepare has made. CLIP are weights for stage 1, see
# configs/stage1.py, which is done for each fold: a ViT tuned on another fold
# has seen this one's test clips. Without VEMD_CLIP there is no stage 1. Options of
# the recipe stand in VEMD_OPTIONS, such as VEMD_OPTIONS=person_query.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo 'expected: dfew_folds.sh DATA WORKDIR [--config.KEY=VALUE...]' >&2
  exit 2
fi
# Relative paths mean the folder from where the script is called.
data=$(realpath -m "$1") workdir=$(realpath -m "$2")
clip=${VEMD_CLIP:+$(realpath "$VEMD_CLIP")}
shift 2

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment
runs=()
for fold in 1 2 3 4 5; do
  run=$workdir/fold_$fold
  runs+=("$run")
  weights=()
  if [ -n "$clip" ]; then
    "$python" -m vemd_jax.main --config=configs/stage1.py:dfew --mode=train \
      --config.data.root="$data" --config.data.fold="$fold" \
      --config.checkpoint.init_from="('$clip',)" --workdir="$run/stage1"
    weights=(--config.checkpoint.init_from="('$run/stage1',)")
  fi
  # A fold that is done only shows its results.
  "$python" -m vemd_jax.main --config="configs/dfew.py:${VEMD_OPTIONS:-}" \
    --config.data.root="$data" --config.data.fold="$fold" \
    --workdir="$run" "${weights[@]}" "$@"
done
exec "$python" -m vemd_jax.folds "${runs[@]}"
