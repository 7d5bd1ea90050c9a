#!/usr/bin/env bash
# Makes what the emulated board boots: Debian's arm64 kernel, an initial RAM disk that finds the root, and a root disk
# of ext4 with a journal, made of Debian's packages. Everything lies in FOLDER and is made once.
#   cross/board/image.sh [FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../target/board}
mkdir -p "$out"
out=$(cd "$out" && pwd)

suite=bookworm
packages=systemd-sysv,udev,kmod,openssh-server,iproute2,v4l-utils,procps,e2fsprogs,adduser
megabytes=1200

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

kernel() {
    local package
    [ ! -e "$out/kernel/done" ] || return 0
    dpkg --print-foreign-architectures | grep -qx arm64 ||
        fail "Debian's arm64 packages are not known here: dpkg --add-architecture arm64 && apt-get update"
    package=$(apt-cache depends linux-image-arm64:arm64 | awk '/Depends:/ { print $2; exit }')
    [ -n "$package" ] || fail "apt knows no linux-image-arm64:arm64: apt-get update"
    rm -rf "$out/kernel"
    mkdir -p "$out/kernel"
    (
        cd "$out/kernel"
        apt-get download -q "$package" busybox-static:arm64
        for deb in *.deb; do
            dpkg -x "$deb" .
        done
    )
    rm "$out"/kernel/*.deb
    /sbin/depmod -b "$out/kernel" "$(version)"
    touch "$out/kernel/done"
}

version() {
    basename "$out"/kernel/lib/modules/*
}

# module_files NAME…: the modules and all they need, in the order in which they must be loaded.
module_files() {
    local name
    for name; do
        /sbin/modprobe -d "$out/kernel" -S "$(version)" --show-depends "$name"
    done | awk '/^insmod/ && !seen[$2]++ { print $2 }'
}

# The initial RAM disk mounts the root read-only, which replays its journal, and goes there.
initrd() {
    [ ! -e "$out/initrd.img" ] || return 0
    local tree=$out/initrd file
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,dev,proc,sys,sysroot,modules}
    cp "$out/kernel/bin/busybox" "$tree/bin/"
    module_files virtio_pci virtio_blk ext4 | while IFS= read -r file; do
        cp "$file" "$tree/modules/"
        printf 'insmod /modules/%s\n' "$(basename "$file")"
    done >"$tree/load"
    install -m 755 "$here/guest/init" "$tree/init"
    (cd "$tree" && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) >"$out/initrd.img.new"
    mv "$out/initrd.img.new" "$out/initrd.img"
    rm -rf "$tree"
}

root_folder() {
    local root=$1 home=$1/root file
    mkdir -p "$out/debs"
    debootstrap --foreign --arch=arm64 --variant=minbase --cache-dir="$out/debs" --include="$packages" "$suite" "$root"
    # In a container debootstrap makes it a link to the machine's own.
    rm -f "$root/proc" && mkdir -p "$root/proc"
    while IFS= read -r file; do
        install -D -m 644 "$file" "$root/usr${file#"$out/kernel"}"
    done < <(module_files virtio_net virtio_gpu virtio_rng vivid)
    cp "$out"/kernel/lib/modules/*/modules.{order,builtin,builtin.modinfo} "$root/usr/lib/modules/$(version)/"
    /sbin/depmod -b "$root/usr" "$(version)"
    cp -r "$here"/guest/overlay/. "$root/"
    install -D -m 600 "$out/key.pub" "$home/.ssh/authorized_keys"
    chmod 700 "$home/.ssh"
    printf 'board\n' >"$root/etc/hostname"
    install -m 755 "$here/guest/setup" "$root/setup"
}

root_image() {
    truncate -s 0 "$out/base.img.new"
    truncate -s "${megabytes}M" "$out/base.img.new"
    /sbin/mke2fs -q -t ext4 -L board -d "$1" "$out/base.img.new"
}

# Packages are unpacked here. They are configured in an emulator where this machine can do that (a minute), else by the
# board itself at its first boot (some minutes).
base() {
    [ ! -e "$out/base.img" ] || return 0
    local root=$out/root emulated=no
    [ -e "$out/key" ] || ssh-keygen -q -t ed25519 -N '' -C board -f "$out/key"
    rm -rf "$root"
    if [ "$(id -u)" = 0 ]; then
        root_folder "$root" >"$out/root.log" 2>&1 || fail "the root could not be made, see $out/root.log"
        if "$here/emulated.sh" "$root" /bin/true >/dev/null 2>&1; then
            "$here/emulated.sh" "$root" /setup >"$out/setup.log" 2>&1 || fail "see $out/setup.log"
            emulated=yes
        fi
        root_image "$root"
    else
        export -f root_folder root_image version module_files fail
        export here out suite packages megabytes
        fakeroot bash -euo pipefail -c "root_folder '$root' && root_image '$root'" >"$out/root.log" 2>&1 ||
            fail "the root could not be made, see $out/root.log"
    fi
    rm -rf "$root"
    if [ "$emulated" = no ]; then
        timeout 3600 qemu-system-aarch64 -M virt -cpu cortex-a72 -accel tcg,thread=multi -smp 2 -m 1024 -display none \
            -no-reboot -monitor none -serial "file:$out/setup.log" -kernel "$out"/kernel/boot/vmlinuz-* \
            -initrd "$out/initrd.img" -append "console=ttyAMA0 loglevel=4 init=/setup" \
            -drive "file=$out/base.img.new,format=raw,if=virtio,cache=unsafe" || fail "QEMU failed, see $out/setup.log"
    fi
    grep -q 'board: set up' "$out/setup.log" || fail "the packages could not be configured, see $out/setup.log"
    /sbin/e2fsck -fp "$out/base.img.new" >/dev/null || [ $? -le 1 ] || fail "the new root's file system is damaged"
    mv "$out/base.img.new" "$out/base.img"
}

kernel
initrd
base
