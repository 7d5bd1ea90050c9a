#!/usr/bin/env bash
# Joins the shards of slurm-map.sh into a model. slurm-submit.sh starts it once all of them are done; see README.md.
#SBATCH --job-name=cellgate-reduce
#SBATCH --cpus-per-task=4
#SBATCH --mem=2G
#SBATCH --time=00:30:00
set -euo pipefail

: "${OUT:?the folder of the partial fits}" "${SHARDS:?how many shards}"

shards=()
for ((i = 0; i < SHARDS; i++)); do
    shards+=("$OUT/shard-$i.cgp")
done
exec "${CELLGATE:-cellgate}" merge "${shards[@]}" --threads "${SLURM_CPUS_PER_TASK:-1}" -o "$OUT/model.cgm"
