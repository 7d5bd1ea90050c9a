# shellcheck shell=bash
# What the scripts of this folder share; sourced, with the working folder at the root of the sources.

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# needs PROGRAM PACKAGE: a program, and the Debian package that brings it.
needs() {
    command -v "$1" >/dev/null || fail "$1 is not there: apt-get install $2"
}

# The tools of requirements.txt, in a folder of their own, first in PATH.
cross_tools() {
    local venv=$PWD/target/cross-venv
    if ! cmp -s cross/requirements.txt "$venv/installed.txt"; then
        needs python3 python3-venv
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r cross/requirements.txt
        cp cross/requirements.txt "$venv/installed.txt"
    fi
    export PATH="$venv/bin:$PATH"
}

# triple ARCHITECTURE: what Rust calls it.
triple() {
    case $1 in
    aarch64 | x86_64) printf '%s-unknown-linux-gnu\n' "$1" ;;
    *) fail "--arch $1: aarch64 and x86_64 are built" ;;
    esac
}

# Where cargo leaves the program of an architecture.
built() {
    printf '%s/%s/release/cellgate\n' "${CARGO_TARGET_DIR:-target}" "$(triple "$1")"
}

# glibc_of JETPACK: the version of glibc in its root file system.
glibc_of() {
    case $1 in
    5) printf '2.31\n' ;;
    6) printf '2.35\n' ;;
    *) fail "--jetpack $1: 5 and 6 are known (7 runs what is built for 6)" ;;
    esac
}

# The highest version of glibc that a program's symbols ask for.
highest_glibc() {
    readelf --wide --version-info "$1" | grep -o 'GLIBC_[0-9.]*' | sort --version-sort --unique | tail -n 1 | cut -d_ -f2
}

# What a program loads when it starts, beside the loader.
libraries() {
    readelf --wide --dynamic "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p' | grep -v '^ld-linux' | sort | paste -sd ' '
}

# asks_no_more PROGRAM JETPACK: says what a program asks of the system that runs it, and fails if that JetPack lacks it.
asks_no_more() {
    local found glibc library
    needs readelf binutils
    found=$(highest_glibc "$1")
    glibc=$(glibc_of "$2")
    [ -n "$found" ] || fail "$1 asks for no version of glibc: it was not read"
    [ "$(printf '%s\n' "$found" "$glibc" | sort --version-sort | tail -n 1)" = "$glibc" ] ||
        fail "$1 needs glibc $found, and JetPack $2 has $glibc"
    # What the package depends on. The shim's C++ brings Zig's libc++ along: no system's libstdc++, with versions of its own,
    # is asked for.
    for library in $(libraries "$1"); do
        case $library in
        libc.so.6 | libm.so.6 | libdl.so.2 | libpthread.so.0 | librt.so.1 | libgcc_s.so.1) ;;
        *) fail "$1 needs $library, which deploy/debian/control does not promise" ;;
        esac
    done
    printf '  needs glibc %s (JetPack %s has %s), and loads %s\n' "$found" "$2" "$glibc" "$(libraries "$1")"
}

# The libraries of an aarch64 program under qemu-aarch64-static. Without its -L: the cross compiler's own libc hangs in
# pthread_create.
arm_libraries() {
    if ! [ -e /lib/aarch64-linux-gnu/libgcc_s.so.1 ] || ! [ -e /usr/lib/aarch64-linux-gnu/libstdc++.so.6 ]; then
        fail "no ARM libraries: dpkg --add-architecture arm64; apt-get install libc6:arm64 libgcc-s1:arm64 libstdc++6:arm64"
    fi
}

# The time of a release is that of its commit, so that the same commit gives the same bytes on another day.
release_time() {
    if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
        SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) ||
            fail "the time of the release is unknown: build in a git checkout, or set SOURCE_DATE_EPOCH"
        export SOURCE_DATE_EPOCH
    fi
}

# debian_architecture ARCHITECTURE: what Debian calls it.
debian_architecture() {
    case $1 in
    aarch64) printf 'arm64\n' ;;
    x86_64) printf 'amd64\n' ;;
    *) fail "$1: Debian packages are made for aarch64 and x86_64" ;;
    esac
}

# The version in Cargo.toml.
cargo_version() {
    sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1
}

# The name of this machine's Debian.
debian_suite() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# The mirror that this machine's own packages come from.
debian_mirror() {
    local mirror
    needs apt-get apt
    # shellcheck disable=SC2016 # apt's own placeholder
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $(debian_suite)" | head -n 1)
    [ -n "$mirror" ] || fail "apt knows no mirror: apt-get update"
    printf '%s\n' "$mirror"
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

# runner ARCHITECTURE JETPACK: the command that starts such a program here; empty if it needs none.
runner() {
    [ "$1" != "$(uname -m)" ] || return 0
    needs qemu-aarch64-static qemu-user-static
    if [ "$2" = 5 ]; then
        printf 'qemu-aarch64-static -L %s\n' "$(debian11)"
    else
        arm_libraries
        printf 'qemu-aarch64-static\n'
    fi
}
