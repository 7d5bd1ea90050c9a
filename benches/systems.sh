#!/usr/bin/env bash
# Evaluates every method of `cellgate eval` but semacnn on ELPV, one after another, and prints docs/accuracy.md's table of
# the paper's other systems: systems.sh [DIR] [OPTION OF eval...]. Each result is kept in DIR (target/systems) as JSON, and
# what is there already is not run again. `METHODS="svd k-means"` chooses.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-target/systems}
shift || true
read -ra methods <<<"${METHODS:-threshold svd k-means autoencoder-amplitude autoencoder-otsu resnet50 vgg11 resnext101}"
mkdir -p "$out"
cargo build --release --locked --bin cellgate
for method in "${methods[@]}"; do
    [ -s "$out/$method.json" ] && continue
    options=("$@")
    [ "$method" = threshold ] && options=()
    target/release/cellgate eval --data elpv --method "$method" --json ${options[@]+"${options[@]}"} >"$out/$method.part"
    mv "$out/$method.part" "$out/$method.json"
done
python3 - "$out" "${methods[@]}" <<'PY'
import json, pathlib, sys

questions = [("any_doubt", "p > 0"), ("likely", "p ≥ 2/3"), ("certain", "p = 1 against 0")]
print("| method | image, epochs | " + " | ".join(f"{title}: accuracy, F1, AUROC" for _, title in questions) + " | minutes |")
print("|---|---|" + "---|" * len(questions) + "---|")
for method in sys.argv[2:]:
    result = json.loads((pathlib.Path(sys.argv[1]) / f"{method}.json").read_text())
    settings = {setting["name"]: setting["value"] for setting in result["settings"]}
    by_name = {part["binarisation"]: part["groups"][0]["mean"] for part in result["binarisations"]}
    row = [f"`{method}`", settings["image"] + (f", {settings['epochs']}" if "epochs" in settings else "")]
    for name, _ in questions:
        mean = by_name[name]
        row.append(f"{100 * mean['accuracy']:.1f}, {100 * mean['f1']:.1f}, {mean['auroc']:.3f}")
    row.append(f"{int(settings['seconds']) / 60:.1f}")
    print("| " + " | ".join(row) + " |")
PY
