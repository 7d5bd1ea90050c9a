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
  --features LIST  cargo's; `tensorrt` needs its headers' folder in TENSORRT_INCLUDE
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
case $jetpack in
5) glibc=2.31 ;;
6) glibc=2.35 ;;
*) fail "--jetpack $jetpack: 5 and 6 are known (7 runs what is built for 6)" ;;
esac
case ",$features," in
*,tensorrt,*)
    [ -n "${TENSORRT_INCLUDE:-}" ] || fail "--features tensorrt needs TENSORRT_INCLUDE, the folder of NvInfer.h"
    [ -e "$TENSORRT_INCLUDE/NvInfer.h" ] || fail "TENSORRT_INCLUDE=$TENSORRT_INCLUDE has no NvInfer.h"
    export TENSORRT_INCLUDE
    ;;
esac

# No folder of this machine in the program: panics would tell them, and two folders would give two programs.
remap() {
    local home=${CARGO_HOME:-$HOME/.cargo}
    printf '%s ' "--remap-path-prefix=$home=/cargo" "--remap-path-prefix=$PWD=/cellgate"
}

# The highest version of glibc that a program's symbols ask for.
highest_glibc() {
    readelf --wide --version-info "$1" | grep -o 'GLIBC_[0-9.]*' | sort --version-sort --unique | tail -n 1 | cut -d_ -f2
}

# Debian 11 has the glibc of JetPack 5: its loader and libraries, unpacked, stand in for it.
debian11() {
    local folder=$PWD/target/debian11-arm64 options package
    if [ ! -e "$folder/system/lib/aarch64-linux-gnu/libc.so.6" ]; then
        mkdir -p "$folder"/{lists,cache/archives}/partial "$folder/system"
        printf 'deb [arch=arm64] %s bullseye main\n' "$(debian_mirror)" >"$folder/sources.list"
        options=(-qq -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null
            -o "Dir::State::lists=$folder/lists" -o Dir::State::status=/dev/null -o "Dir::Cache=$folder/cache"
            -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Acquire::Languages=none -o APT::Sandbox::User=root)
        apt-get "${options[@]}" update >&2
        (cd "$folder" && apt-get "${options[@]}" download libc6 libgcc-s1 >&2)
        for package in "$folder"/*.deb; do
            dpkg-deb --extract "$package" "$folder/system"
        done
    fi
    printf '%s/system\n' "$folder"
}

# The command that starts an aarch64 program here.
runner() {
    [ "$arch" != "$(uname -m)" ] || return 0
    needs qemu-aarch64-static qemu-user-static
    if [ "$jetpack" = 5 ]; then
        printf 'qemu-aarch64-static -L %s\n' "$(debian11)"
    else
        arm_libraries
        printf 'qemu-aarch64-static\n'
    fi
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
found=$(highest_glibc "$program")
[ "$(printf '%s\n' "$found" "$glibc" | sort --version-sort | tail -n 1)" = "$glibc" ] ||
    fail "$program needs glibc $found, and JetPack $jetpack has $glibc"
printf '%s\n  size: %s bytes\n  needs glibc %s (JetPack %s has %s)\n' "$program" "$(stat -c %s "$program")" "$found" \
    "$jetpack" "$glibc"
if [ -n "$manual" ]; then
    # Not in one go with the program, which must be the same with and without.
    build --package cellgate-manual
    read -r -a run <<<"$(runner)"
    "${run[@]}" "${program%/*}/cellgate-manual" "$manual"
fi
if [ "$start" = yes ]; then
    read -r -a run <<<"$(runner)"
    "${run[@]}" "$program" --version
    began=$(date +%s%N)
    for _ in 1 2 3 4 5; do
        "${run[@]}" "$program" --version >/dev/null
    done
    printf '  start to exit: %d ms, mean of 5%s\n' $((($(date +%s%N) - began) / 5000000)) \
        "${run[*]:+, under ${run[0]}, which is many times slower than a board}"
fi
