#!/usr/bin/env bash
# Whether the Debian package keeps its promises: bash cross/check-deb.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=cross/common.sh
. cross/common.sh
# shellcheck source=cross/debian.sh
. cross/debian.sh

usage() {
    cat <<'TEXT'
Installs, upgrades, downgrades, removes and purges a package in a fresh Debian of this machine's architecture.

  cross/check-deb.sh PACKAGE.deb

Needs root, mmdebstrap, lintian, dpkg-dev. The Debian is made once, in target/debian-root/.
TEXT
}

case ${1:-} in
-h | --help) usage && exit ;;
*.deb) deb=$1 ;;
*) usage >&2 && exit 2 ;;
esac
# Of systemd's ten points of exposure; what is left is the network, the devices and the scheduler, which a station needs.
exposure=2.0
config=/etc/cellgate/config.toml
needs lintian lintian

# As apt does it, with a technician who keeps his settings.
install_deb() {
    cp "$1" "$root/package.deb"
    inside dpkg --force-confdef --force-confold --install /package.deb >>"$log" 2>&1 || { cat "$log" >&2 && fail "installing $1"; }
    rm "$root/package.deb"
}

absent() { [ ! -e "$root$1" ] || fail "$1 is still there"; }

lint() {
    # Overrides, each with its reason, are in deploy/debian/cellgate.lintian-overrides.
    lintian --allow-root --fail-on error,warning,info --display-info "$deb" || fail "lintian"
    check "lintian has nothing to say"
}

# The next version of the package, with a configuration that has changed.
next_version() {
    local tree=$work/next
    rm -rf "$tree"
    dpkg-deb --raw-extract "$deb" "$tree"
    sed -i 's/^Version: .*/&+next/' "$tree/DEBIAN/control"
    printf '\n#: # of the next version\n' >>"$tree$config"
    (cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | xargs -0 md5sum >DEBIAN/md5sums)
    dpkg-deb --root-owner-group -Zgzip -z1 --build "$tree" "$work/next.deb" >/dev/null
    rm -rf "$tree"
}

installed() {
    install_deb "$deb"
    inside id -nG cellgate | tr ' ' '\n' | sort | paste -sd ' ' | grep -qx 'cellgate gpio render video' ||
        fail "the user cellgate is in $(inside id -nG cellgate)"
    expect /etc/cellgate root:cellgate\ 750
    expect "$config" root:cellgate\ 640
    expect /var/lib/cellgate cellgate:cellgate\ 750
    expect /var/lib/cellgate/update cellgate:cellgate\ 750
    inside cellgate --version >/dev/null
    inside setpriv --reuid cellgate --regid cellgate --init-groups cellgate run --check >/dev/null ||
        fail "the service's user cannot read a valid configuration"
    bash -n "$root/usr/share/bash-completion/completions/cellgate"
    for page in cellgate cellgate-run cellgate-update-install; do
        gzip -t "$root/usr/share/man/man1/$page.1.gz"
    done
    ! inside systemctl is-enabled --quiet cellgate || fail "the service is enabled without a model"
    check "installed: user, folders, program, configuration, pages, completions; the service is not enabled"
}

service() {
    inside systemd-analyze verify --man=no cellgate.service || fail "systemd-analyze verify"
    local score
    score=$(inside systemd-analyze security --offline=true --no-pager cellgate.service | grep -o 'service: [0-9.]*' | cut -d' ' -f2)
    awk -v score="$score" -v most="$exposure" 'BEGIN { exit !(score + 0 > 0 && score + 0 <= most + 0) }' ||
        fail "exposure $score, more than $exposure"
    check "the unit is valid; systemd-analyze security: exposure $score of 10, at most $exposure"
}

kept() {
    grep -q '^# edited$' "$root$config" || fail "$1: the edited configuration is gone"
    grep -q verdicts "$root/var/lib/cellgate/outbox" || fail "$1: the outbox is gone"
    expect /var/lib/cellgate/outbox cellgate:cellgate\ 640
    expect "$config" root:cellgate\ 640
    check "$1: settings and state are kept"
}

fresh_debian "$deb"
log=$root.log
lint
next_version
tree >"$work/before.txt"
installed
service
tree >"$work/installed.txt"
install_deb "$deb"
tree | diff "$work/installed.txt" - || fail "installing the same version again changed something"
check "installed again: nothing changes"

printf '# edited\n' >>"$root$config"
printf 'verdicts\n' >"$root/var/lib/cellgate/outbox"
inside chown cellgate:cellgate /var/lib/cellgate/outbox
inside chmod 640 /var/lib/cellgate/outbox
install_deb "$work/next.deb"
kept "upgraded"
grep -q 'of the next version' "$root$config.dpkg-dist" || fail "the new version's configuration was not laid beside the edited one"
install_deb "$deb"
kept "downgraded"
[ "$(inside dpkg-query --show cellgate | cut -f 2)" = "$(dpkg-deb --field "$deb" Version)" ] || fail "the downgrade"

inside dpkg --remove cellgate >>"$log" 2>&1
kept "removed"
absent /usr/bin/cellgate
absent /lib/systemd/system/cellgate.service
install_deb "$deb"
kept "installed after a removal"
inside dpkg --purge cellgate >>"$log" 2>&1
absent /etc/cellgate
absent /var/lib/cellgate
inside id cellgate >/dev/null || fail "the user's number is free for another"
# What a purge may leave: the user.
left=$(tree | diff "$work/before.txt" - | grep '^[<>]' | grep -vE ' \./etc/((passwd|group|shadow|gshadow)-?|\.pwd\.lock) ' || true)
[ -z "$left" ] || fail "the purge left this behind or took it along:"$'\n'"$left"
check "purged: nothing is left but the user"
rm -f "$log"
