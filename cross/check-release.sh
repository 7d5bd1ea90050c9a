#!/usr/bin/env bash
# Looks at a release as one who downloads it: bash cross/check-release.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=cross/common.sh
. cross/common.sh

usage() {
    cat <<'TEXT'
Checks what `cargo xtask dist` has made: the checksums; in each archive the program, which starts here or under QEMU, its pages,
links and owners; that the packages hold the same programs; the bill of materials by CycloneDX's own schema.

  cross/check-release.sh [FOLDER]

FOLDER is target/dist if left out. Needs python3 with venv; for ARM's programs qemu-user-static.
TEXT
}

folder=target/dist
case ${1:-} in
-h | --help) usage && exit ;;
-*) usage >&2 && exit 2 ;;
?*) folder=$1 ;;
esac
[ -e "$folder/SHA256SUMS" ] || fail "$folder/SHA256SUMS is not there: cargo xtask dist"
needs python3 python3-venv
needs dpkg-parsechangelog dpkg-dev
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
check() { printf 'ok: %s\n' "$*"; }

(cd "$folder" && sha256sum --quiet --check SHA256SUMS) || fail "a file is not what SHA256SUMS says"
diff <(cut -c67- "$folder/SHA256SUMS" | sort) <(cd "$folder" && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort) ||
    fail "SHA256SUMS does not name every file"
check "checksums of $(wc -l <"$folder/SHA256SUMS") files"

version=$(cargo_version)
deb_version=$(dpkg-parsechangelog --file deploy/debian/changelog --show-field Version)
for arch in aarch64 x86_64; do
    name=cellgate-$version-$(triple "$arch")
    [ -e "$folder/$name.tar.gz" ] || continue
    others=$(tar --list --verbose --numeric-owner --file "$folder/$name.tar.gz" | awk '{ print $2 }' | sort -u)
    [ "$others" = 0/0 ] || fail "$name.tar.gz holds files of $others"
    tar --extract --no-same-owner --file "$folder/$name.tar.gz" --directory "$work"
    [ "$(ls "$work")" = "$name" ] || fail "$name.tar.gz unpacks to more than one folder: $(ls "$work")"
    tree=$work/$name
    read -r -a run <<<"$(runner "$arch" 5)"
    [ "$("${run[@]}" "$tree/cellgate" --version | head -n 1)" = "cellgate $version" ] || fail "$name: the program does not start"
    "${run[@]}" "$tree/cellgate" run --config "$tree/deploy/cellgate.toml" --check >/dev/null ||
        fail "$name: the program refuses the configuration that comes with it"
    # TensorRT is in it, and missed by its name where it is missing.
    said=$("${run[@]}" "$tree/cellgate" doctor --backend cuda --outbox "$work" || true)
    grep -q 'libnvinfer.so.11 or libnvinfer.so.10' <<<"$said" || fail "$name: doctor says nothing of TensorRT:"$'\n'"$said"
    for page in man/cellgate.1 completions/cellgate.bash README.md LICENSE-MIT deploy/provision.sh docs/install.md; do
        [ -s "$tree/$page" ] || fail "$name.tar.gz has no $page"
    done
    ! grep -aoE "$PWD|${CARGO_HOME:-$HOME/.cargo}/[a-z]+" "$tree/cellgate" | sort -u | grep . ||
        fail "$name: the program tells a folder of the building machine"
    deb=$folder/cellgate_${deb_version}_$(debian_architecture "$arch").deb
    dpkg-deb --fsys-tarfile "$deb" | tar --extract --to-stdout ./usr/bin/cellgate | cmp - "$tree/cellgate" ||
        fail "$deb has another program than the archive"
    check "$name: $(stat -c %s "$tree/cellgate") bytes, starts, is the package's"
    rm -r "$tree"
done

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'cyclonedx-python-lib[json-validation]==11.12.0'
"$work/venv/bin/python" - "$folder/cellgate-$version.cdx.json" <<'PY' || fail "the bill of materials"
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

text = open(sys.argv[1], encoding="utf-8").read()
error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
if error:
    sys.exit(str(error))
components = json.loads(text)["components"]
without = [c["name"] for c in components if not c.get("licenses")]
if without:
    sys.exit(f"without a licence: {without}")
print(f"ok: bill of materials: CycloneDX 1.5, {len(components)} components, all with a licence")
PY
