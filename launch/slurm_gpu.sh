#!/usr/bin/env bash
# GPUs under SLURM, one task for each GPU; put into the queue again after a time limit or a preemption.
#
#   sbatch --nodes=2 launch/slurm_gpu.sh --config configs/rmt_s.py --workdir /shared/rmt_s
#
# Not run by us on a cluster yet; tests/test_launch.py runs it with an `srun` and a `scontrol` of its own. Written for
# SLURM 23 and later. Submit from the repository, with .venv in it ('.[cuda]'); the folder must be on all nodes.
#SBATCH --job-name=rmt
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time limit every task gets SIGUSR1: it saves, and ends with 143.
#SBATCH --signal=USR1@120
set -u
most=${MOST_RESTARTS:-100}

trap ':' TERM USR1 # for the tasks; the script has something to do after them
srun --kill-on-bad-exit=0 --wait=180 "${PYTHON:-.venv/bin/python}" main.py "$@"
code=$?
if [ "$code" -ne 143 ]; then
    exit "$code"
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$most" ]; then
    echo "slurm_gpu.sh: started again $most times already: submit anew to go on." >&2
    exit 143
fi
echo "slurm_gpu.sh: preempted, back into the queue" >&2
scontrol requeue "$SLURM_JOB_ID"
exit 143
