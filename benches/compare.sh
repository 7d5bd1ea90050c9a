#!/usr/bin/env bash
# Every target of speed and memory, measured beside the peers on this machine. `compare.sh --help` says the options.
#
# The peers come from PyPI into target/compare/venv (5.5 GB: torch's wheel brings its CUDA libraries); --remove-venv
# takes it away again afterwards. Measure on a quiet machine.
set -euo pipefail
cd "$(dirname "$0")/.."

remove=false
arguments=()
for argument in "$@"; do
    case "$argument" in
    --remove-venv) remove=true ;;
    -h | --help)
        python3 benches/compare --help
        echo "  --remove-venv         remove the peers' virtual environment at the end"
        exit
        ;;
    *) arguments+=("$argument") ;;
    esac
done

venv=target/compare/venv
wanted=benches/compare/requirements.txt
if ! cmp --silent "$wanted" "$venv/installed.txt"; then
    rm -rf "$venv"
    mkdir -p target/compare
    python3 -m venv "$venv"
    # The list is complete: what it leaves out (triton, cuSOLVER and the like) no peer loads on a CPU.
    "$venv/bin/pip" install --quiet --no-deps -r "$wanted"
    cp "$wanted" "$venv/installed.txt"
fi
work=$(mktemp -d "$PWD/target/compare/scratch.XXXXXX")
clean_up() {
    rm -rf "$work"
    if $remove; then rm -rf "$venv"; fi
}
trap clean_up EXIT

messages=$work/build.json
cargo build --release --locked --bin cellgate --bench backbone --bench inspection --bench distance \
    --message-format json-render-diagnostics >"$messages"
# The executable of a bench.
bench() {
    "$venv/bin/python" - "$messages" "$1" <<'PYTHON'
import json, sys
for message in map(json.loads, open(sys.argv[1])):
    if message.get("executable") and message["target"]["name"] == sys.argv[2]:
        print(message["executable"])
PYTHON
}
backbone=$(bench backbone)
inspection=$(bench inspection)
distance=$(bench distance)

"$venv/bin/python" -W ignore benches/compare \
    --cellgate "$PWD/target/release/cellgate" \
    --backbone "$backbone" --inspection "$inspection" --distance "$distance" \
    --repository "$PWD" --work "$work" ${arguments[@]+"${arguments[@]}"}
