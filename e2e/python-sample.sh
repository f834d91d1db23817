#!/bin/sh
# Runs the Python sample in an environment of its own against a running node:
#   python-sample.sh SOCKET URL > content
# The environment is kept in $PYTHON_SAMPLE_VENV (default: target/python-sample), so that only the
# first run installs anything. Exit code 77: there is no python3 with venv here.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 SOCKET URL" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${PYTHON_SAMPLE_VENV:-$root/target/python-sample}
python3 -c 'import venv, ensurepip' 2>/dev/null || {
    echo "skipped: no python3 with venv and ensurepip here" >&2
    exit 77
}
if [ ! -e "$venv/ready" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'grpcio>=1.70,<2' 'grpcio-tools>=1.70,<2' >&2
    touch "$venv/ready"
fi
exec "$venv/bin/python" "$root/dataplane/client/examples/read.py" \
    "$1" "$root/dataplane/proto/proto" "$2"
