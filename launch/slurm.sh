#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster, with one process per GPU:
#
#   sbatch --nodes=2 launch/slurm.sh CONFIG WORKDIR [--config.KEY=VALUE...]
#
# The repository and WORKDIR must be on a file system that all nodes share. JAX
# reads the process layout from Slurm's environment variables. A job that reaches
# its time limit or is preempted saves a checkpoint and is requeued
# automatically; resubmitting a failed job resumes its run.
#SBATCH --job-name=vemd_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# Leaves time to save a checkpoint before the job is killed.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
config=$1 workdir=$2
shift 2

# Slurm runs a copy of this script, so sbatch must be called in the repository.
cd "$SLURM_SUBMIT_DIR"
export VEMD_ACCELERATOR=${VEMD_ACCELERATOR:-cuda12}
source launch/environment.sh
prepare_environment

# JAX selects the GPU by the local rank of the process, so each process must see
# all GPUs of its node (no --gpus-per-task, no --gpu-bind).
status=0
srun --kill-on-bad-exit=1 \
  --cpus-per-task="$SLURM_CPUS_PER_TASK" "$python" -m vemd_jax.main \
  --config="$config" --workdir="$workdir" "$@" || status=$?
# 75: stopped by a signal, with a checkpoint saved.
if [ "$status" = 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
