#!/usr/bin/env bash
# Installs the cloud's own command line, bl, into dist/bl, where scripts/bl.test.ts finds it and runs it against hutch.
# Needs Go and a module proxy that has it. BL_VERSION names a version other than the latest.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${BL_VERSION:-latest}
if ! command -v go > /dev/null; then
  echo 'bl is not installed: there is no Go on this machine (https://go.dev/dl)' >&2
  exit 1
fi
mkdir -p dist/bl
if ! GOBIN="$PWD/dist/bl" GOFLAGS=-mod=mod go install "github.com/blaxel-ai/toolkit@$version"; then
  echo "bl is not installed: Go could not get github.com/blaxel-ai/toolkit@$version" >&2
  exit 1
fi
# Go names the program after its module.
mv -f dist/bl/toolkit dist/bl/bl
dist/bl/bl version --skip-version-warning || true
echo 'npm test -- scripts/bl.test.ts runs it against hutch'
