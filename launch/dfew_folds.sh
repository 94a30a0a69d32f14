#!/usr/bin/env bash
# Trains configs/dfew.py on the five folds of DFEW, one after the other, and
# averages WAR and UAR. The same command resumes an interrupted run.
#
#   VEMD_CLIP=CLIP bash launch/dfew_folds.sh DATA WORKDIR [--config.KEY=VALUE...]
#
# DATA is the output of vemd_jax.data.prepare. CLIP are the initial weights of
# stage 1, see configs/stage1.py. Stage 1 runs for each fold separately, since a
# ViT fine-tuned on another fold has seen this one's test clips. Without
# VEMD_CLIP, stage 1 is skipped. VEMD_OPTIONS sets options of the recipe, such
# as VEMD_OPTIONS=person_query.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo 'expected: dfew_folds.sh DATA WORKDIR [--config.KEY=VALUE...]' >&2
  exit 2
fi
# Relative paths are relative to the caller's working directory.
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
  # For a finished fold this only prints its results.
  "$python" -m vemd_jax.main --config="configs/dfew.py:${VEMD_OPTIONS:-}" \
    --config.data.root="$data" --config.data.fold="$fold" \
    --workdir="$run" "${weights[@]}" "$@"
done
exec "$python" -m vemd_jax.folds "${runs[@]}"
