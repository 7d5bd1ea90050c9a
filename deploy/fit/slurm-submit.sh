#!/usr/bin/env bash
# Queues a fit in shards and, behind it, their merge: slurm-submit.sh DATA OUT SHARDS [SETTINGS OF `cellgate fit`…]
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 DATA OUT SHARDS [settings of cellgate fit, such as --copies 1]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
export DATA=$1 OUT=$2 SHARDS=$3 SETTINGS="${*:4}"
mkdir -p "$OUT"

map=$(sbatch --parsable --export=ALL --array="0-$((SHARDS - 1))" --output="$OUT/shard-%a.log" "$here/slurm-map.sh")
map=${map%%;*}
reduce=$(sbatch --parsable --export=ALL --dependency="afterok:$map" --output="$OUT/model.log" "$here/slurm-reduce.sh")
echo "shards: job $map, merge: job ${reduce%%;*}, model: $OUT/model.cgm"
