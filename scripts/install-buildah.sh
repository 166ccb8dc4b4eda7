#!/bin/sh
# Installs buildah, which builds projects with a Dockerfile, from the packages of Debian and its relatives. Does nothing where
# it is there; says why where it cannot be had, and ends well all the same: what needs it is skipped there.
set -eu

if command -v buildah >/dev/null 2>&1; then
  buildah --version
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo 'buildah is not installed: that takes root and apt-get' >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# Seconds; a mirror that does not answer holds nobody up for long.
limit='-o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 -o Acquire::Retries=1'
install() {
  # shellcheck disable=SC2086
  timeout 300 apt-get install -y -q --no-install-recommends $limit buildah >/dev/null 2>&1
}
# What is known of packages may be old, or nothing at all.
# shellcheck disable=SC2086
if install || { timeout 300 apt-get update -q $limit >/dev/null 2>&1 && install; }; then
  buildah --version
else
  echo 'buildah is not installed: apt-get cannot get it' >&2
fi
