#!/usr/bin/env bash
# Whether deploy/provision.sh does what it says, and nothing the second time: bash cross/check-provision.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=cross/common.sh
. cross/common.sh
# shellcheck source=cross/debian.sh
. cross/debian.sh

usage() {
    cat <<'TEXT'
Makes a station of a fresh Debian of this machine's architecture: rehearsed, done, done again, and by something like ssh.

  cross/check-provision.sh PACKAGE.deb

Needs root, mmdebstrap. Nothing is started there: no systemd runs in it, and the tools of a Jetson are stand-ins.
TEXT
}

case ${1:-} in
-h | --help) usage && exit ;;
*.deb) deb=$1 ;;
*) usage >&2 && exit 2 ;;
esac
config=/etc/cellgate/config.toml
fresh_debian "$deb"

# What a technician brings along: model, keys, password.
dpkg-deb --extract "$deb" "$root/unpacked"
program=$root/unpacked/usr/bin/cellgate
bag=$root/bag
mkdir "$bag"
"$program" fit --synth=40 --synth-size 180 --size 64 --grid 8 -k 8 --holdout 0.4 -o "$bag/line.cgm" >/dev/null 2>&1
(cd "$bag" && "$program" bundle keygen anna && "$program" bundle keys anna.pub --threshold 1 -o keys.cgk &&
    "$program" bundle sign keys.cgk --key anna.key) >/dev/null
printf 'secret\n' >"$bag/password"
cp "$deb" "$bag/cellgate.deb"
cp deploy/provision.sh "$bag/"
rm -r "$root/unpacked"

# A Jetson's tools, as far as they are used: one that keeps a mode, one that leaves a trace.
cat >"$root/usr/sbin/nvpmodel" <<'SH'
#!/bin/sh
case $1 in
-q) printf 'NV Power Mode: TRIAL\n%s\n' "$(cat /etc/nvpmode 2>/dev/null || echo 1)" ;;
-m) echo "$2" >/etc/nvpmode ;;
esac
SH
printf '#!/bin/sh\n' >"$root/usr/sbin/jetson_clocks"
chmod 755 "$root/usr/sbin/nvpmodel" "$root/usr/sbin/jetson_clocks"

options=(--package /bag/cellgate.deb --line line-7 --station 'el "3"' --broker plc.example:8883 --broker-user station
    --broker-password /bag/password --camera /dev/cellgate-camera --model /bag/line.cgm --keys /bag/keys.cgk
    --set 'display.output="png"' --set mqtt.keep-alive-s=20 --power-mode 0 --clocks max --no-start)
provision() { inside bash /bag/provision.sh "$@"; }

tree >"$work/before.txt"
provision "${options[@]}" --dry-run >/dev/null || fail "the rehearsal"
tree | diff "$work/before.txt" - || fail "a rehearsal changed something"
check "rehearsed: nothing changes"

provision "${options[@]}" >"$work/first.txt" || fail "provisioning: $(cat "$work/first.txt")"
said=$(inside cellgate run --check)
for line in 'line = "line-7"' "station = 'el \"3\"'" 'host = "plc.example"' 'port = 8883' 'username = "station"' \
    'password-file = "/etc/cellgate/mqtt-password"' 'device = "/dev/cellgate-camera"' 'output = "png"' 'keep-alive-s = 20'; do
    grep -qxF "$line" <<<"$said" || fail "the configuration does not say $line:"$'\n'"$said"
done
comments() { grep -o '  # .*' "$1"; }
diff <(comments deploy/cellgate.toml) <(comments "$root$config") || fail "comments are gone"
expect "$config" root:cellgate\ 640
expect /etc/cellgate/mqtt-password root:cellgate\ 640
expect /var/lib/cellgate/model.cgm cellgate:cellgate\ 640
inside runuser -u cellgate -- cellgate update status --json | grep -q '"key-set":1' || fail "the keys are not enrolled"
[ "$(cat "$root/etc/nvpmode")" = 0 ] || fail "the power mode"
grep -q 'ExecStartPre=+-/usr/sbin/jetson_clocks' "$root/etc/systemd/system/cellgate.service.d/clocks.conf" || fail "the clocks"
check "provisioned: $(tail -n 1 "$work/first.txt")"

printf '# an edit of the technician\n' >>"$root$config"
tree >"$work/after.txt"
provision "${options[@]}" >"$work/second.txt" || fail "provisioning again: $(cat "$work/second.txt")"
grep -qx '0 changes' "$work/second.txt" || fail "the second time: $(cat "$work/second.txt")"
tree | diff "$work/after.txt" - || fail "the second time changed something"
check "provisioned again: 0 changes"

# As ssh would, without a network: the last argument is a command for the board's shell.
printf '#!/bin/sh\nshift\nexec chroot %q sh -c "$*"\n' "$root" >"$work/ssh"
chmod 755 "$work/ssh"
bash deploy/provision.sh --host board --ssh "$work/ssh" --broker-password "$bag/password" --model "$bag/line.cgm" \
    --keys "$bag/keys.cgk" --package "$bag/cellgate.deb" --station 'el "3"' --no-start >"$work/remote.txt" ||
    fail "provisioning from elsewhere: $(cat "$work/remote.txt")"
grep -qx '0 changes' "$work/remote.txt" || fail "from elsewhere: $(cat "$work/remote.txt")"
tree | diff "$work/after.txt" - || fail "provisioning from elsewhere left something behind"
check "provisioned from elsewhere: 0 changes, nothing left behind"

if provision --set mqtt.port=0 --no-start >/dev/null 2>"$work/refused.txt"; then
    fail "a port of 0 was taken"
fi
tree | diff "$work/after.txt" - || fail "settings that were refused changed something"
check "settings that cannot be used are refused: $(tail -n 1 "$work/refused.txt")"
