#!/usr/bin/env bash
# Runs a sweep as a Slurm job array, one run per job, one GPU each:
#
#   python -m vemd_jax.sweep configs/claim.py --workdir=SWEEP --list
#   sbatch --array=0-199%8 launch/sweep.sh configs/claim.py --workdir=SWEEP
#
# The first command shows the number of runs; both take the same arguments. A job
# whose run depends on another one, such as stage 1, executes that run first or
# waits for it. Resubmitting a stopped job resumes its run.
#SBATCH --job-name=vemd_sweep
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%A_%a.log
# Leaves time to save a checkpoint before the job is killed.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

# Slurm runs a copy of this script: the repository is where sbatch was called.
cd "$SLURM_SUBMIT_DIR"
export VEMD_ACCELERATOR=${VEMD_ACCELERATOR:-cuda12}
source launch/environment.sh
prepare_environment
exec "$python" -m vemd_jax.sweep "$@" --index="$SLURM_ARRAY_TASK_ID"
