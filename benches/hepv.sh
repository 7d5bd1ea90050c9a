#!/usr/bin/env bash
# The paper's experiment on its own data set (HEPV), on synthetic cells in its place: statistics from good cells of a line in
# HEPV's composition, then the classifier cross-validated on the balanced set of HEPV's manual labels (385 A, 385 B, 206 C
# with dark spots, 76 C with cracks; the paper says 1,049 in all, its parts sum to 1,052), of the same line but other cells.
#   hepv.sh [CELLS] [DIR] [OPTION OF eval...]    CELLS of the line for the statistics (68,748 as in HEPV; default 8,000)
# The tables are printed, and kept in DIR (target/hepv); what is there already is not made again.
set -euo pipefail
cd "$(dirname "$0")/.."

cells=${1:-8000}
out=${2:-target/hepv}
shift $(($# < 2 ? $# : 2))
mkdir -p "$out"
cargo build --release --locked --bin cellgate
cellgate=target/release/cellgate
model=$out/line-$cells.cgm
[ -s "$model" ] || "$cellgate" fit --synth "$cells" -o "$model"

# Numbers beyond those of the line, each part its own.
part() {
    "$cellgate" synth -o "$out/labelled/$1" --first "$2" --count "$3" --no-masks "${@:4}"
}
part a 100000000 385 --class A
part b 200000000 385 --class B
part spots 300000000 206 --defect dark-spot
part straight 400000000 26 --defect crack-straight
part cross 500000000 25 --defect crack-cross
part branching 600000000 25 --defect crack-branching
{
    echo file,label
    for part in a b spots straight cross branching; do
        tail -n +2 "$out/labelled/$part/labels.csv" | cut -d, -f1,2 | sed "s|^|$part/|"
    done
} >"$out/labelled/labels.new"
rm -f "$out"/labelled/*/labels.csv
mv "$out/labelled/labels.new" "$out/labelled/labels.csv"

for method in threshold semacnn; do
    echo "== $method"
    "$cellgate" eval --data "$out/labelled" --method "$method" --model "$model" "$@" | tee "$out/$method.txt"
done
