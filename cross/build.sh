#!/usr/bin/env bash
# The release for a Jetson, built on x86-64: bash cross/build.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=cross/common.sh
. cross/common.sh

usage() {
    cat <<'TEXT'
Builds the release and checks what it asks of the system that will run it.

  cross/build.sh [--jetpack 5|6] [--arch aarch64|x86_64] [--features LIST] [--manual DIR] [--no-start]

  --jetpack N      the oldest JetPack that is to run it: 5 (glibc 2.31, the default; runs on 6 and 7 too) or 6 (glibc 2.35)
  --arch NAME      aarch64 (the default), or x86_64 with the same promise
  --features LIST  cargo's; `tensorrt` takes TensorRT's headers from TENSORRT_INCLUDE, or fetches those of 10 and 11
  --manual DIR     write the manual pages and the shells' completions there, too
  --no-start       do not start the result

The program lies in target/<arch>-unknown-linux-gnu/release/cellgate. Needs rustup, python3 with venv, readelf (binutils);
to start an aarch64 program elsewhere: qemu-user-static, and for JetPack 5 apt, which brings Debian 11's glibc to target/.
TEXT
}

jetpack=5 arch=aarch64 features='' manual='' start=yes
while [ $# -gt 0 ]; do
    case $1 in
    --jetpack | --arch | --features | --manual) [ $# -ge 2 ] || fail "$1 needs a value" ;;&
    --jetpack) jetpack=$2 && shift 2 ;;
    --arch) arch=$2 && shift 2 ;;
    --features) features=$2 && shift 2 ;;
    --manual) manual=$2 && shift 2 ;;
    --no-start) start=no && shift ;;
    -h | --help) usage && exit ;;
    *) fail "unknown option $1; see --help" ;;
    esac
done
glibc=$(glibc_of "$jetpack")
case ",$features," in
*,tensorrt,*)
    [ -n "${TENSORRT_INCLUDE:-}" ] || TENSORRT_INCLUDE=$(cargo xtask tensorrt-headers)
    export TENSORRT_INCLUDE
    ;;
esac

# No folder of this machine in the program: panics would tell them, and two folders would give two programs.
remap() {
    local home=${CARGO_HOME:-$HOME/.cargo}
    printf '%s ' "--remap-path-prefix=$home=/cargo" "--remap-path-prefix=$PWD=/cellgate"
}

needs rustup rustup
needs readelf binutils
cross_tools
target=$(triple "$arch")
rustup target add "$target"
build() {
    RUSTFLAGS="$(remap)" CARGO_INCREMENTAL=0 cargo zigbuild --locked --release --target "$target.$glibc" "$@"
}
build --package cellgate --bin cellgate ${features:+--features "$features"}

program=$(built "$arch")
printf '%s\n  size: %s bytes\n' "$program" "$(stat -c %s "$program")"
asks_no_more "$program" "$jetpack"
if [ -n "$manual" ]; then
    # Not in one go with the program, which must be the same with and without.
    build --package cellgate-manual
    read -r -a run <<<"$(runner "$arch" "$jetpack")"
    "${run[@]}" "${program%/*}/cellgate-manual" "$manual"
fi
if [ "$start" = yes ]; then
    read -r -a run <<<"$(runner "$arch" "$jetpack")"
    "${run[@]}" "$program" --version
    began=$(date +%s%N)
    for _ in 1 2 3 4 5; do
        "${run[@]}" "$program" --version >/dev/null
    done
    printf '  start to exit: %d ms, mean of 5%s\n' $((($(date +%s%N) - began) / 5000000)) \
        "${run[*]:+, under ${run[0]}, which is many times slower than a board}"
fi
