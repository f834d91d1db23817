#!/usr/bin/env bash
# Installs what building and testing needs on a Debian that has Rust and Go, and nothing when it is
# there already. Its arguments say for what: test, cluster, containers, arm64, bench, dragonfly-client.
set -euo pipefail

missing=()
daemons=()
wanted() { [[ " $arguments " == *" $1 "* ]]; }
arguments="$*"
command -v cc >/dev/null || missing+=(build-essential)
command -v make >/dev/null || missing+=(make)
command -v git >/dev/null || missing+=(git)
# aws-lc's assembly is generated for the common targets; only a C compiler is needed.
if wanted test; then
    command -v python3 >/dev/null || missing+=(python3)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
fi
if wanted cluster; then
    # Nodes run Debian's containerd beside a later one; the registry serves their images.
    command -v containerd >/dev/null || { missing+=(containerd); daemons+=(containerd); }
    command -v docker-registry >/dev/null || { missing+=(docker-registry); daemons+=(docker-registry); }
    command -v runc >/dev/null || missing+=(runc)
    [ -x /usr/lib/cni/ptp ] || missing+=(containernetworking-plugins)
    command -v ip >/dev/null || missing+=(iproute2)
    command -v iptables >/dev/null || missing+=(iptables)
    command -v nsenter >/dev/null || missing+=(util-linux)
    command -v mount >/dev/null || missing+=(mount)
    [ -s /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
fi
if wanted containers; then
    # What reads registries.conf as CRI-O and podman do.
    command -v buildah >/dev/null || missing+=(buildah)
fi
if wanted arm64; then
    command -v aarch64-linux-gnu-gcc >/dev/null || missing+=(gcc-aarch64-linux-gnu)
    [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || missing+=(libc6-dev-arm64-cross)
    command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user-static)
fi
if wanted bench; then
    command -v nginx >/dev/null || missing+=(nginx-light)
    command -v curl >/dev/null || missing+=(curl)
    command -v aria2c >/dev/null || missing+=(aria2)
    command -v tc >/dev/null || missing+=(iproute2)
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
fi
if wanted dragonfly-client; then
    # Its API is compiled by protoc, its RocksDB bound by libclang.
    command -v protoc >/dev/null || missing+=(protobuf-compiler)
    command -v g++ >/dev/null || missing+=(build-essential)
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || missing+=(libclang-dev)
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
        echo "needed and not installed: ${missing[*]} (as root: apt-get install ${missing[*]})" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    # The tests start daemons of their own: the packages' shall not run, now or after a restart.
    policy=/usr/sbin/policy-rc.d
    if [ ${#daemons[@]} -gt 0 ] && [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f $policy' EXIT
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    if [ ${#daemons[@]} -gt 0 ] && command -v systemctl >/dev/null; then
        systemctl disable --quiet "${daemons[@]}" 2>/dev/null || true
    fi
fi
command -v cargo >/dev/null || { echo "Rust is needed: cargo is not in PATH" >&2; exit 1; }
if wanted cluster; then
    command -v go >/dev/null || {
        echo "Go is needed to build Kubernetes for the tests: go is not in PATH" >&2
        exit 1
    }
fi
if wanted arm64; then
    rustup target list --installed | grep -qx aarch64-unknown-linux-gnu ||
        rustup target add aarch64-unknown-linux-gnu
fi
