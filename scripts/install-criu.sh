#!/bin/sh
# Builds CRIU 4 for memory snapshots, from the sources that Debian keeps of it, and puts it where hutch looks for it. It is
# linked statically: it runs among the files of sandboxes, of which nothing may be loaded. Does nothing where it is there;
# says why where it cannot be had, and ends well all the same: snapshots have files only there, and tests of it are skipped.
set -eu

target=${HUTCH_CRIU_PATH:-/usr/local/lib/hutch/criu}
if [ -x "$target" ]; then
  "$target" --version | head -n 1
  exit 0
fi
give_up() {
  echo "CRIU is not installed: $1" >&2
  exit 0
}
[ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1 || give_up 'that takes root and apt-get'
case $(uname -m) in x86_64 | aarch64) ;; *) give_up "not on $(uname -m)" ;; esac
export DEBIAN_FRONTEND=noninteractive
# Seconds; a mirror that does not answer holds nobody up for long.
limit='-o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 -o Acquire::Retries=1'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tools='gcc make pkgconf python3 xz-utils libprotobuf-c-dev libprotobuf-dev protobuf-c-compiler protobuf-compiler
  libnl-3-dev libnet1-dev libcap-dev uuid-dev'
install() {
  # shellcheck disable=SC2086
  timeout 600 apt-get install -y -q --no-install-recommends $limit $tools >/dev/null 2>&1
}
# What is known of packages may be old, or nothing at all.
# shellcheck disable=SC2086
install || { timeout 300 apt-get update -q $limit >/dev/null 2>&1 && install; } || give_up 'apt-get cannot get its tools'

# The list of sources of unstable Debian, beside those of this host, which stay as they are.
uri=$(sed -n 's/^URIs: *//p; s/^deb [^h]*\(http[^ ]*\).*/\1/p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
  grep '/debian/*$' | head -n 1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -n "$uri" ] && [ -f "$keys" ] || give_up 'this is no Debian'
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
echo "deb-src [signed-by=$keys] $uri sid main" >"$work/sources.list"
: >"$work/status"
cat >"$work/apt.conf" <<CONF
Dir::State "$work";
Dir::State::status "$work/status";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
APT::Sandbox::User "root";
CONF
cd "$work/source"
# shellcheck disable=SC2086
APT_CONFIG="$work/apt.conf" timeout 300 apt-get update -q $limit >/dev/null 2>&1 &&
  APT_CONFIG="$work/apt.conf" timeout 300 apt-get source -q --download-only --tar-only $limit criu >/dev/null 2>&1 ||
  give_up 'apt-get cannot get its source'
tar -xf criu_*.orig.tar.* && cd criu-*/ || give_up 'its source cannot be unpacked'
grep -q '^CRIU_VERSION_MAJOR[[:space:]]*:=[[:space:]]*4$' Makefile.versions || give_up 'its source is not of version 4'

# Neither plugins nor filters of packets are for a program without libraries.
sed -i 's/-rdynamic -o \$@/-static -o $@/' criu/Makefile
sed -i 's/($(call pkg-config-check,libnftables),y)/(no,yes)/' Makefile.config
timeout 1200 make -j"$(nproc)" criu NO_GNUTLS=1 WERROR=0 >"$work/log" 2>&1 || {
  tail -n 5 "$work/log" >&2
  give_up 'it cannot be built'
}
strip criu/criu
"./criu/criu" check --unprivileged >/dev/null 2>&1 || "./criu/criu" check >/dev/null 2>&1 ||
  echo 'CRIU says that this kernel lacks something it needs: criu check' >&2
mkdir -p "$(dirname "$target")"
install_path="$target.new"
cp criu/criu "$install_path" && chmod 755 "$install_path" && mv "$install_path" "$target"
"$target" --version | head -n 1
