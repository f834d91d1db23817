#!/usr/bin/env bash
# Installs what building and testing needs on a Debian that has Rust and Go, and nothing when it is
# there already.
set -euo pipefail

missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v make >/dev/null || missing+=(make)
command -v git >/dev/null || missing+=(git)
# aws-lc's assembly is generated for the common targets; only a C compiler is needed.
if [ "${1:-}" = test ]; then
    command -v python3 >/dev/null || missing+=(python3)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
fi
if [ "${1:-}" = bench ]; then
    command -v nginx >/dev/null || missing+=(nginx-light)
    command -v curl >/dev/null || missing+=(curl)
    command -v aria2c >/dev/null || missing+=(aria2)
    command -v tc >/dev/null || missing+=(iproute2)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "needed and not installed: ${missing[*]} (as root: apt-get install ${missing[*]})" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v cargo >/dev/null || { echo "Rust is needed: cargo is not in PATH" >&2; exit 1; }
