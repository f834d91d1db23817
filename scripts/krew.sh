#!/usr/bin/env bash
# Makes what krew installs the plugin from: an archive for each platform of config/krew/dragonfly.yaml, out of
# the directory with the programs that were built for it, and that manifest with all filled in. The same
# programs make the same archives.
#
#   scripts/krew.sh OUTPUT VERSION HOMEPAGE URL amd64=DIRECTORY arm64=DIRECTORY
#
# URL is where the archives will be found: what comes before their names.
set -euo pipefail

fail() {
    echo "krew.sh: $*" >&2
    exit 1
}
[ $# -ge 5 ] || fail "OUTPUT VERSION HOMEPAGE URL and, for each processor, ARCH=DIRECTORY are needed"
output=$1 version=$2 homepage=$3 url=$4
shift 4
[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$ ]] ||
    fail "VERSION: '$version' is no version that krew takes, such as v1.2.3"
for at in "HOMEPAGE $homepage" "URL $url"; do
    [[ $at =~ ^[A-Z]+\ https?://[-._~%:/A-Za-z0-9]+$ ]] || fail "${at/ /: }: a URL is needed"
done

programs=(kubectl-dragonfly kubectl_complete-dragonfly)
here=$(dirname "${BASH_SOURCE[0]}")
# Without its comments, which are for who changes it.
manifest=$(sed '/^ *#/d' "$here/../config/krew/dragonfly.yaml")
mkdir -p "$output"
for given in "$@"; do
    arch=${given%%=*} from=${given#*=}
    sum=SHA256_LINUX_${arch^^}
    [[ $manifest == *"$sum"* ]] || fail "$given: the manifest has no platform linux/$arch"
    for program in "${programs[@]}"; do
        [ -x "$from/$program" ] || fail "$from/$program is not there: build it first"
    done
    archive=$output/kubectl-dragonfly_linux_$arch.tar.gz
    tar --create --directory="$from" --sort=name --format=ustar --mtime=@0 --owner=0 --group=0 \
        --numeric-owner --mode=0755 "${programs[@]}" | gzip --no-name >"$archive"
    known=$(sha256sum "$archive")
    manifest=${manifest//"$sum"/"${known%% *}"}
done
manifest=${manifest//VERSION/"$version"}
manifest=${manifest//HOMEPAGE/"$homepage"}
manifest=${manifest//URL/"${url%/}"}
[[ $manifest =~ SHA256_LINUX_[A-Z0-9]+ ]] && fail "${BASH_REMATCH[0]}: no programs were named for it"
printf '%s\n' "$manifest" >"$output/dragonfly.yaml"
