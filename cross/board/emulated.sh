#!/usr/bin/env bash
# Runs a command in a folder that holds an arm64 root, as its root: emulated by qemu-aarch64-static, which only this
# command's own user namespace knows (Linux 6.7 or later); nothing of the machine's is changed. Needs root.
#   cross/board/emulated.sh ROOT COMMAND…
set -euo pipefail
root=$1
shift

# The first twenty bytes of an executable for aarch64.
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'

inside() {
    local go
    read -r go # the namespace's users are known
    : "$go"
    mount -t binfmt_misc binfmt /proc/sys/fs/binfmt_misc
    printf ':aarch64:M::%s:%s:%s:F' "$magic" "$mask" "$(command -v qemu-aarch64-static)" >/proc/sys/fs/binfmt_misc/register
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    chroot "$root" "$@"
}
export -f inside
export root magic mask

coproc unshare --user --mount --pid --fork --kill-child bash -euo pipefail -c 'inside "$@"' inside "$@" >&2
pid=$COPROC_PID
# The namespace's first process takes all others with it.
trap 'pkill -KILL -P "$pid" || true' EXIT
trap 'exit 1' INT TERM
for _ in {1..50}; do
    [ "$(readlink "/proc/$pid/ns/user")" = "$(readlink /proc/self/ns/user)" ] || break
    sleep 0.1
done
echo '0 0 65536' >"/proc/$pid/uid_map"
echo '0 0 65536' >"/proc/$pid/gid_map"
echo go >&"${COPROC[1]}"
wait "$pid"
