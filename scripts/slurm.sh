#!/usr/bin/env bash
# A Slurm array whose tasks all work on one study: each takes the next run that nobody has taken, until none is left.
#
#   sbatch --array=0-7 --time=8:00:00 --gres=gpu:1 --cpus-per-task=4 scripts/slurm.sh experiment=quadrants_embedded
#
# What follows the script's name are the words of `fourfold -m`; a sweep needs study=NAME or gets one from what it sweeps.
# Submit from the folder where `outputs/` shall lie, with the environment active that holds fourfold (sbatch passes it on), on a
# disk that all nodes share; partition, account, memory and GPU are options of sbatch, which go before the script's name.
# Submit the same line again whenever you like: finished runs stay, and tasks that find nothing to do end at once.
#
# Two minutes before the time is up, Slurm sends USR1 to this script; so it does before pre-emption where the cluster has
# PreemptParameters=send_user_signal, and you may by hand: scancel --batch --signal=USR1 JOB_TASK. The run saves after its current
# step, the task goes back to the queue, and there the run goes on from its checkpoint.
#
#SBATCH --job-name=fourfold
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=fourfold-%A_%a.log

fourfold -m "$@" &
fourfold=$!
requeue=
trap 'requeue=yes; kill -USR1 $fourfold 2>/dev/null' USR1
trap : TERM # scancel, or pre-emption without USR1: Slurm has sent it to fourfold as well, which saves

while kill -0 $fourfold 2>/dev/null; do wait $fourfold; done # a signal ends `wait`, but not fourfold
wait $fourfold # bash remembers how it ended
code=$?

# 130: it was asked to stop, and has saved; 138: it had not begun to listen. Anything else is the study's own end.
if [ "$requeue" ] && { [ $code = 130 ] || [ $code = 138 ]; }; then
  # A task's own number may be that of the whole array, and would requeue all of it.
  scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
fi
exit $code
