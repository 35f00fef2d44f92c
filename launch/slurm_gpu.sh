#!/usr/bin/env bash
# GPUs under SLURM, one task for each GPU; put into the queue again after a time limit, a preemption or a lost task.
#
#   sbatch --nodes=2 launch/slurm_gpu.sh --config configs/rmt_s.py --workdir /shared/rmt_s
#
# Not run by us on a cluster yet; tests/test_launch.py runs it with an `srun` and a `scontrol` of its own. Written for
# SLURM 23.02 and later. Submit from the repository, with .venv in it ('.[cuda]'); the folder must be on all nodes.
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

# The signals that ask for a save go to the tasks alone. The script gets SIGTERM when the job is ended: by scancel, or
# because its time is over; and it waits for the tasks all the same.
ended=''
trap 'ended=yes' TERM
trap ':' USR1
# Since SLURM 22.05 srun does not take --cpus-per-task over from sbatch: the data workers would share one core.
srun --kill-on-bad-exit=0 --wait=180 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    "${PYTHON:-.venv/bin/python}" main.py "$@"
code=$? # the highest of all tasks
case $code in
    143 | 75) ;;   # saved; a passing condition
    134 | 137) ;;  # aborted by jax because the first process is lost; killed. A lost node SLURM itself requeues
    *) exit "$code" ;;
esac
# scontrol would put a cancelled job back into the queue too.
if [ -n "$ended" ] && [ "$(date +%s)" -lt "${SLURM_JOB_END_TIME:-9999999999}" ]; then
    echo "slurm_gpu.sh: the job was cancelled, and is not put back into the queue" >&2
    exit "$code"
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "$most" ]; then
    echo "slurm_gpu.sh: started again $most times already: submit anew to go on." >&2
    exit "$code"
fi
echo "slurm_gpu.sh: ended with $code, back into the queue" >&2
scontrol requeue "$SLURM_JOB_ID"
exit "$code"
