#!/bin/bash
#SBATCH --job-name=sweep
#SBATCH --partition=gpu
#SBATCH --array=0-1%100
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -u
cd /opt/audiorank || exit 1
runs=(0123456789ab ba9876543210)
/opt/venv/bin/python -m launch.train --workdir=/data/sweeps/one/"${runs[$SLURM_ARRAY_TASK_ID]}" &
worker=$!
trap 'kill -TERM "$worker"' TERM
wait "$worker"; code=$?
# A trapped signal ends the first wait; the second has the worker's own code.
if kill -0 "$worker" 2>/dev/null; then wait "$worker"; code=$?; fi
if [ "$code" -eq 42 ] || [ "$code" -ge 128 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
