#!/usr/bin/env bash
# One shard of a fit: a task of a Slurm array. slurm-submit.sh starts it; see README.md.
#
# Preempted, out of time or lost with its node, it goes back into the queue and on from its partial fit.
#SBATCH --job-name=cellgate-map
#SBATCH --cpus-per-task=4
#SBATCH --mem=2G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

: "${DATA:?the images: a folder or a list}" "${OUT:?the folder of the partial fits}" "${SHARDS:?how many shards}"
read -ra settings <<<"${SETTINGS:-}"

"${CELLGATE:-cellgate}" fit "$DATA" "${settings[@]}" --threads "${SLURM_CPUS_PER_TASK:-1}" \
    --shard "$SLURM_ARRAY_TASK_ID/$SHARDS" -o "$OUT/shard-$SLURM_ARRAY_TASK_ID.cgp" &
fit=$!

# Slurm's word, two minutes before the time is up: keep what is done, and queue again.
stopped() {
    trap - TERM
    kill -TERM "$fit" 2>/dev/null || true
    wait "$fit" && exit 0
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    exit 1
}
trap stopped TERM
wait "$fit"
