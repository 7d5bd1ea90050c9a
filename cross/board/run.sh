#!/usr/bin/env bash
# Boots the whole board under QEMU, with the package installed, and checks from outside that it does its work and
# survives that its power is cut. docs/board.md says what that proves and what not.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
    cat <<'USAGE'
Usage: cross/board/run.sh [OPTIONS]

  --deb FILE        the arm64 package [default: the newest in target/dist or target/debian]
  --cellgate FILE   this machine's binary, which fits models and makes bundles
                    [default: target/release/cellgate, target/debug/cellgate]
  --provision FILE  the script that makes a station of a board [default: deploy/provision.sh]
  --quick           one round of cells, an update and two power cuts; no faults of the camera, no controls
  --cuts N          power cuts [default: 10, with --quick 2]
  --seed N          of their moments and of what the disk loses [default: 1]
  --help            this text

Needs Debian's qemu-system-arm, debootstrap, e2fsprogs, kmod, cpio, openssh-client, mosquitto, mosquitto-clients, openssl
and python3 (and fakeroot, if not run as root), the architecture arm64 known to dpkg, and Debian's archive within reach at
the first time. What is made (2 GB) lies in target/board, results in target/board/run: summary.json, summary.txt,
display.png, provision-*.log, serial-*.log. Exits with 0 if every check passed.
USAGE
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

deb='' cellgate='' provision=deploy/provision.sh checks=()
while [ $# -gt 0 ]; do
    case $1 in
    --deb) deb=${2:?--deb needs a file} && shift ;;
    --cellgate) cellgate=${2:?--cellgate needs a file} && shift ;;
    --provision) provision=${2:?--provision needs a file} && shift ;;
    --quick) checks+=(--cuts 2 --cells 13 --brief) ;;
    --cuts | --seed) checks+=("$1" "${2:?$1 needs a number}") && shift ;;
    --help | -h) usage && exit ;;
    *) fail "unknown option $1, see --help" ;;
    esac
    shift
done

needs=()
# command:package, where it may lie out of the way in sbin.
for need in qemu-system-aarch64:qemu-system-arm debootstrap:debootstrap mke2fs:e2fsprogs modprobe:kmod cpio:cpio \
    ssh:openssh-client mosquitto:mosquitto mosquitto_sub:mosquitto-clients python3:python3 openssl:openssl; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${need%%:*}" >/dev/null || needs+=("${need#*:}")
done
[ "$(id -u)" = 0 ] || command -v fakeroot >/dev/null || needs+=(fakeroot)
[ ${#needs[@]} = 0 ] || fail "missing: apt-get install --no-install-recommends ${needs[*]}"

# newest FILE…: the newest of those that are there.
newest() {
    local file found=''
    for file; do
        if [ -e "$file" ] && { [ -z "$found" ] || [ "$file" -nt "$found" ]; }; then
            found=$file
        fi
    done
    printf '%s\n' "$found"
}

[ -n "$deb" ] || deb=$(newest target/dist/*_arm64.deb target/debian/*_arm64.deb)
[ -e "$deb" ] || fail "no arm64 package '$deb': make one, or say --deb"
[ -n "$cellgate" ] || cellgate=$(newest target/release/cellgate target/debug/cellgate)
[ -x "$cellgate" ] || fail "no program '$cellgate': cargo build --release, or say --cellgate"
[ -r "$provision" ] || fail "no script '$provision', say --provision"

made=target/board
mkdir -p "$made/run"
exec 9>"$made/lock"
flock -n 9 || fail "another run uses $made"
cross/board/image.sh "$made"

# Whatever happens, nothing is left running: board.py ends what it started, and is ended itself.
python3 cross/board/board.py --made "$made" --deb "$deb" --provision "$provision" --cellgate "$cellgate" "${checks[@]}" \
    > >(tee "$made/run/summary.txt") &
driver=$!
trap 'kill "$driver" 2>/dev/null || true; wait "$driver" || true' EXIT
trap 'exit 130' INT TERM
status=0
wait "$driver" || status=$?
trap - EXIT
exit "$status"
