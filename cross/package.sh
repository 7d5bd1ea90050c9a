#!/usr/bin/env bash
# The Debian package of a release: bash cross/package.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=cross/common.sh
. cross/common.sh

usage() {
    cat <<'TEXT'
Packs what cross/build.sh has built, with manual pages and completions made from the command line.

  cross/package.sh [--arch aarch64|x86_64] [--out DIR] [--manual DIR] [--program FILE]

  --arch NAME     aarch64 (the default, a package for arm64) or x86_64 (amd64)
  --out DIR       where the package goes; target/debian if left out
  --manual DIR    pages and completions of this very version, made before by `cargo run --package cellgate-manual -- DIR`
  --program FILE  another build, for a trial: nobody has checked which glibc it needs

What the package holds is said in deploy/debian/. Needs debhelper.
TEXT
}

arch=aarch64 out=target/debian manual='' program=''
while [ $# -gt 0 ]; do
    case $1 in
    --arch | --out | --manual | --program) [ $# -ge 2 ] || fail "$1 needs a value" ;;&
    --arch) arch=$2 && shift 2 ;;
    --out) out=$2 && shift 2 ;;
    --manual) manual=$2 && shift 2 ;;
    --program) program=$2 && shift 2 ;;
    -h | --help) usage && exit ;;
    *) fail "unknown option $1; see --help" ;;
    esac
done

program=${program:-$(built "$arch")}
[ -x "$program" ] || fail "$program is not there: cross/build.sh --arch $arch"
needs dh debhelper
release_time

# What debian/rules packs, laid out as it expects it.
stage=target/debian-stage/$arch
rm -rf "$stage"
mkdir -p "$stage/program" "$stage/completions" "$out"
cp -r deploy/debian "$stage/debian"
for kind in service sysusers tmpfiles; do
    cp "deploy/station/cellgate.$kind" "$stage/debian/"
done
cp deploy/station/61-cellgate.rules "$stage/debian/cellgate.udev"
cp deploy/cellgate.toml "$stage/config.toml"
cp -r docs "$stage/docs"
cp "$program" "$stage/program/cellgate"
if [ -z "$manual" ]; then
    manual=target/manual
    cargo run --locked --quiet --release --package cellgate-manual -- "$manual"
fi
cp -r "$manual/man" "$stage/man"
cp "$manual"/completions/* "$stage/completions/"
mv "$stage/completions/cellgate.bash" "$stage/completions/cellgate"

version=$(dpkg-parsechangelog --file deploy/debian/changelog --show-field Version)
[ "${version%-*}" = "$(cargo_version)" ] ||
    fail "deploy/debian/changelog begins with $version, and Cargo.toml says $(cargo_version)"
debian_arch=$(debian_architecture "$arch")
if ! (cd "$stage" && dpkg-architecture --host-arch "$debian_arch" --force --command debian/rules binary) >"$stage.log" 2>&1; then
    cat "$stage.log" >&2
    fail "debian/rules failed"
fi
mv "$stage/../cellgate_${version}_$debian_arch.deb" "$out/"
printf '%s\n' "$out/cellgate_${version}_$debian_arch.deb"
