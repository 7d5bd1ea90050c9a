#!/usr/bin/env bash
# Counts the instructions of one inspection, from the PNG file to the scores, on one thread, and names the functions
# that take them: instructions.sh [avx2|scalar] [LINES]. Start-up and warm-up are not counted. The count is the same
# on every run but for a few instructions, whatever else the machine does, so it shows changes that a clock cannot;
# instructions.txt keeps the last one. valgrind 3.19 knows no AVX-512: avx2 is the default.
set -euo pipefail
cd "$(dirname "$0")/.."

isa=${1:-avx2}
lines=${2:-16}
command -v valgrind >/dev/null || { echo "instructions.sh: install valgrind first" >&2; exit 1; }
mkdir -p target
work=$(mktemp -d target/instructions.XXXXXX)
trap 'rm -rf "$work"' EXIT

cargo build --release --locked --bin cellgate --bench inspection --message-format json 2>"$work/build.log" \
    >"$work/build.json" || { cat "$work/build.log" >&2; exit 1; }
bench=$(sed -n 's/.*"name":"inspection".*"executable":"\([^"]*\)".*/\1/p' "$work/build.json")
[ -x "$bench" ] || { echo "instructions.sh: the bench inspection was not built" >&2; exit 1; }

target/release/cellgate synth -o "$work/cells" -n 100 --class A --size 300 --no-masks >/dev/null 2>&1
CELLGATE_ISA=$isa target/release/cellgate fit "$work/cells" -o "$work/model.cgm" --preprocess none \
    --size 256 --grid 64 -k 100 --stages 1,2,3 --holdout 0.25 >/dev/null 2>"$work/fit.log" ||
    { cat "$work/fit.log" >&2; exit 1; }

CELLGATE_ISA=$isa valgrind --tool=callgrind --callgrind-out-file="$work/counts" --collect-atstart=no --separate-callers=1 \
    --toggle-collect=counted_inspection \
    "$bench" --count --from-file --model "$work/model.cgm" --image "$work/cells/A000000.png" \
    2>"$work/valgrind.log" || { cat "$work/valgrind.log" >&2; exit 1; }

echo "One inspection of a 300 × 300 PNG (256 × 256, stages 1 to 3, k = 100, 64 × 64), one thread, $isa,"
echo "$(rustc --version), by: benches/instructions.sh $isa"
echo
# A kernel is named after the function that calls it: `run_avx2` alone would be all of them.
callgrind_annotate --threshold=100 "$work/counts" | awk -v lines="$lines" '
    /PROGRAM TOTALS/ { print $1 " instructions"; started = 1; next }
    started && /^ *[0-9,]+ +\( *[0-9.]+%\)/ && shown < lines {
        shown++
        name = $0
        sub(/^ *[0-9,]+ +\( *[0-9.]+%\) +/, "", name)
        sub(/^(\?\?\?|[^ :]*\.[Sc]):/, "", name)
        sub(/ \[[^]]*\]$/, "", name)
        gsub(/\047/, " from ", name)
        match($0, /\( *[0-9.]+%\)/)
        share = substr($0, RSTART + 1, RLENGTH - 2)
        printf "%14s %7s  %s\n", $1, share, substr(name, 1, 110)
    }'
