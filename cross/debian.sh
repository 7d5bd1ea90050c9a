# shellcheck shell=bash
# A fresh Debian to install packages in; sourced after common.sh.

work=$PWD/target/debian-root

# check WHAT: holds.
check() { printf 'ok: %s\n' "$*"; }

# inside COMMAND…: in the fresh Debian.
inside() { chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }

# expect PATH "owner:group mode"
expect() {
    local found
    found=$(inside stat -c '%U:%G %a' "$1" 2>&1) || fail "$1 is not there"
    [ "$found" = "$2" ] || fail "$1 is $found, and should be $2"
}

# Names, owners, modes, sizes and contents of everything but dpkg's books and the caches made from what is installed.
tree() {
    (cd "$root" && find . -xdev \( -path ./var/lib/dpkg -o -path ./var/cache -o -path ./proc -o -path ./sys -o -path ./dev \
        -o -path ./var/log -o -path ./run \) -prune -o \( -type f -printf '%p %u:%g %m %l ' -exec sh -c 'sha256sum <"$1"' _ {} \; \) \
        -o -printf '%p %u:%g %m %l\n' | sort)
}

# fresh_debian PACKAGE: a Debian in which the package can run, in the folder $root, until the script ends.
fresh_debian() {
    local name major minor node
    [ "$(id -u)" = 0 ] || fail "a chroot needs root"
    [ "$(dpkg-deb --field "$1" Architecture)" = "$(dpkg --print-architecture)" ] ||
        fail "$1 is not of this machine's architecture ($(dpkg --print-architecture))"
    needs mmdebstrap mmdebstrap
    mkdir -p "$work"
    if [ ! -e "$work/debian.tar" ]; then
        mmdebstrap --quiet --variant=essential --include=systemd,udev,init-system-helpers,libgcc-s1 \
            --dpkgopt='path-exclude=/usr/share/locale/*' "$(debian_suite)" "$work/new.tar" "$(debian_mirror)"
        mv "$work/new.tar" "$work/debian.tar"
    fi
    root=$(mktemp -d "$work/root.XXXXXX")
    # shellcheck disable=SC2154 # said in the trap itself
    trap 'status=$?; ! mountpoint --quiet "$root/proc" || umount "$root/proc"; rm -rf "$root"; exit $status' EXIT
    tar --extract --file "$work/debian.tar" --directory "$root" --exclude='./dev/*'
    for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9"; do
        read -r name major minor <<<"$node"
        mknod -m 666 "$root/dev/$name" c "$major" "$minor"
    done
    # systemd-tmpfiles follows paths through it.
    mount -t proc proc "$root/proc"
}
