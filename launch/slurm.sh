#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster, one process a GPU:
#
#   sbatch --nodes=2 launch/slurm.sh CONFIG WORKDIR [--config.KEY=VALUE...]
#
# The repository and WORKDIR lie on a file system that all nodes share. JAX
# finds its processes through Slurm's own variables. A job that was stopped, by
# Slurm or by a failure, goes on when it is submitted again.
#SBATCH --job-name=vemd_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# Time to save a checkpoint before the job is ended.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
config=$1 workdir=$2
shift 2

# Slurm runs a copy of this script: the repository is where sbatch was called.
cd "$SLURM_SUBMIT_DIR"
export VEMD_ACCELERATOR=${VEMD_ACCELERATOR:-cuda12}
source launch/environment.sh
prepare_environment

# Each process sees all GPUs of its node and JAX gives it the one of its local
# number, so nothing may hide the others (no --gpus-per-task, no --gpu-bind).
exec srun --kill-on-bad-exit=1 \
  --cpus-per-task="$SLURM_CPUS_PER_TASK" "$python" -m vemd_jax.main \
  --config="$config" --workdir="$workdir" "$@"
