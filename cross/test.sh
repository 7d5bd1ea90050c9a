#!/usr/bin/env bash
# The tests on aarch64: bash cross/test.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=cross/common.sh
. cross/common.sh

usage() {
    cat <<'TEXT'
Builds tests for aarch64 with the linker and the glibc of a release (cross/build.sh) and runs them with NEON, in single and
half precision, under qemu-aarch64-static.

  cross/test.sh             all of them (docs/aarch64.md)
  cross/test.sh --quick     what CI runs: the library but for its longest tests, the CUDA path on a double;
                            and that the program asks for no newer glibc than JetPack 5 has
  cross/test.sh ARGUMENTS   what `cargo test ARGUMENTS` would: cross/test.sh --lib gemm

With TENSORRT_INCLUDE (`cargo xtask tensorrt-headers` prints it) the TensorRT path on the doubles of its libraries, too.
Needs rustup, python3 with venv, readelf (binutils), qemu-user-static, gcc-aarch64-linux-gnu, g++-aarch64-linux-gnu, and
libc6:arm64, libgcc-s1:arm64, libstdc++6:arm64 after dpkg --add-architecture arm64.
TEXT
}

case ${1:-} in
-h | --help) usage && exit ;;
esac

needs rustup rustup
needs qemu-aarch64-static qemu-user-static
needs aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
needs aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
arm_libraries
cross_tools
jetpack=5
target=$(triple aarch64)
rustup --quiet target add "$target"

# What a test starts, if it is for ARM, must be started in QEMU, too; and what else QEMU does in its own way.
tools=$PWD/target/cross-test
mkdir -p "$tools"
aarch64-linux-gnu-gcc -O1 -Wall -Wextra -Werror -fPIC -shared -o "$tools/preload.so" cross/qemu/preload.c

# Nobody debugs these: without the tables the compiler is done sooner. CC and CXX are for the tests that compile C.
export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=none
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -E LD_PRELOAD=$tools/preload.so \
-E CELLGATE_QEMU=$(command -v qemu-aarch64-static) -E CC=aarch64-linux-gnu-gcc -E CXX=aarch64-linux-gnu-g++"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER

features=()
[ -z "${TENSORRT_INCLUDE:-}" ] || features=(--features tensorrt)
run() { cargo-zigbuild test --locked --target "$target.$(glibc_of "$jetpack")" "${features[@]}" "$@"; }

# Parts of tests' names. Too long for CI: networks and conv1 at larger sizes, what trains a network, many fits of the kernel
# machine, long days of a line, an update that is disturbed at every operation.
long=(reference_at_96 tiles_over_the_edge up_to_the_edge baseline:: classifier::infer classifier::judge::tests
    classifier::learning classifier::train out_of_fold_is the_settings_are_those hundred_thousand_cells at_every_operation
    after_every_operation whatever_happens_the_station)
# A cell's way on the double of CUDA's driver, and devices that are refused; a run on that of TensorRT.
cuda=(verdicts_are_the_cpus devices_and_drivers)
tensorrt=(a_run_takes_the_input)

quick() {
    local programs=(--test cuda --test kernels_host)
    [ ${#features[@]} = 0 ] || programs+=(--test tensorrt)
    run --no-run --lib "${programs[@]}"
    # Cargo builds the program beside the tests. It is not optimised as a release is, but asks for the same system.
    asks_no_more "${CARGO_TARGET_DIR:-target}/$target/debug/cellgate" "$jetpack"
    run --lib -- "${long[@]/#/--skip=}"
    run --test cuda -- "${cuda[@]}"
    run --test kernels_host -- a_missing_barrier
    [ ${#features[@]} = 0 ] || run --test tensorrt -- "${tensorrt[@]}"
}

case ${1:-} in
--quick) quick ;;
'') run --no-fail-fast --lib --bins --tests ;;
*) run "$@" ;;
esac
