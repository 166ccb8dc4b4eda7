#!/bin/sh
# Installs the Python packages of other platforms whose APIs hutch speaks (agentfield, xpander-sdk) into an environment of
# their own, outside of the project, where tests find them and run them against hutch. Prints its Python. Does nothing where
# they are there in these versions; says why where they cannot be had, and ends well all the same: what needs them is skipped.
# HUTCH_PYTHON_CLIENTS names another place.
set -eu

uv='uv==0.13.9'
packages='agentfield==0.1.144 xpander-sdk[agno]==2.0.537'
place=${HUTCH_PYTHON_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/hutch/python-clients}

if [ "$(cat "$place/installed" 2>/dev/null)" = "$packages" ]; then
  echo "$place/bin/python"
  exit 0
fi
give_up() {
  echo "the Python clients are not installed: $1" >&2
  exit 0
}
command -v python3 >/dev/null 2>&1 || give_up 'there is no python3 on this machine'
# Put together aside, so that what is in place is always whole.
made="$place.$$"
trap 'rm -rf "$made"' EXIT
mkdir -p "$(dirname "$place")"
python3 -m venv "$made" >/dev/null 2>&1 || give_up 'python3 cannot make an environment (is its venv package there?)'
# Ten times as fast as pip. Limits are in seconds: a registry that does not answer holds nobody up for long.
export UV_HTTP_TIMEOUT=30
# shellcheck disable=SC2086
if timeout 60 "$made/bin/pip" install -q --disable-pip-version-check --retries 1 --timeout 15 "$uv" >/dev/null 2>&1; then
  timeout 180 "$made/bin/uv" pip install -q --python "$made/bin/python" $packages >&2 ||
    give_up 'the package registry does not have them, or cannot be reached'
else
  give_up 'the package registry cannot be reached'
fi
echo "$packages" >"$made/installed"
rm -rf "$place"
mv "$made" "$place"
# Its programs name the place they were made for; only its Python is used, which does not.
echo "$place/bin/python"
