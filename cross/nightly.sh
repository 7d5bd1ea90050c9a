#!/usr/bin/env bash
# The checks that take too long for every change: bash cross/nightly.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=cross/common.sh
. cross/common.sh

steps=(release archives package provision board)
usage() {
    cat <<'TEXT'
Makes a release twice and tries it; docs/install.md says how long each step takes.

  cross/nightly.sh [STEP…]

  release    cargo xtask dist --check: both processors, built in two folders to the same bytes
  archives   cross/check-release.sh: what one who downloads it finds
  package    cross/check-deb.sh: install, upgrade, downgrade, remove, purge; lintian; systemd-analyze
  provision  cross/check-provision.sh: a station in one command, twice
  board      cross/board/run.sh: the whole board under QEMU, ten power cuts

All in this order if none is named. Later steps are tried though one has failed. Needs root, and what each script asks for.
TEXT
}

case ${1:-} in
-h | --help) usage && exit ;;
?*) steps=("$@") ;;
esac

# The release's package of an architecture.
deb() {
    printf 'target/dist/cellgate_%s_%s.deb\n' "$(dpkg-parsechangelog --file deploy/debian/changelog --show-field Version)" "$1"
}
needs dpkg-parsechangelog dpkg-dev
own=$(deb "$(dpkg --print-architecture)")

failed=0
summary=''
for step in "${steps[@]}"; do
    case $step in
    release) command=(cargo xtask dist --check) ;;
    archives) command=(cross/check-release.sh) ;;
    package) command=(cross/check-deb.sh "$own") ;;
    provision) command=(cross/check-provision.sh "$own") ;;
    board) command=(cross/board/run.sh --deb "$(deb arm64)" --cellgate target/x86_64-unknown-linux-gnu/release/cellgate) ;;
    *) usage >&2 && exit 2 ;;
    esac
    printf '\n==> %s: %s\n' "$step" "${command[*]}"
    began=$SECONDS
    said=passed
    "${command[@]}" || { said=FAILED && failed=1; }
    summary+=$(printf '%-10s %-6s %6d s' "$step" "$said" $((SECONDS - began)))$'\n'
done
printf '\n%s' "$summary"
exit "$failed"
