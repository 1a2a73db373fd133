#!/usr/bin/env bash
# Makes the base image that sandbox images are built from where it cannot be pulled.
#
# usage: scripts/base-image.sh [IMAGE]         (default debian:bookworm-slim)
#
# Does nothing when the engine has the image. Else it makes a minimal Debian tree with debootstrap from the
# mirror that this machine's own apt uses, keeps it as a tarball in ${XDG_CACHE_HOME:-~/.cache}/nanogrid, and
# imports it. Needs root for debootstrap, and no registry at all.
set -euo pipefail

image=${1:-debian:bookworm-slim}
suite=${image##*:}
suite=${suite%-slim}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nanogrid
arch=$(dpkg --print-architecture 2>/dev/null || echo amd64)
tarball=$cache/debian-$suite-$arch.tar

die() {
    echo "base-image: $*" >&2
    exit 1
}

sources() { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; }

mirror() {
    # The first Debian mirror of this machine's sources, in either format of them; empty: debootstrap's own default.
    sources | grep -E '^(deb |URIs:)' | grep -oE 'https?://[^ ]*/debian/?( |$)' | head -n 1 | tr -d ' ' || true
}

add_security() {
    # Security updates where the mirror carries them; a mirror without them is no reason to stop.
    local from=$1 root=$2
    if [ -n "$from" ] && sources | grep -qF "${from%/}-security"; then
        echo "deb ${from%/}-security $suite-security main" >>"$root/etc/apt/sources.list"
    fi
}

slim() {
    local root=$1
    rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* \
        "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/var/log/*.log
    # What makes later installs in the images as small as this tree.
    printf 'path-exclude=/usr/share/%s/*\n' doc man locale >"$root/etc/dpkg/dpkg.cfg.d/slim"
    printf 'Apt::Install-Recommends "false";\n' >"$root/etc/apt/apt.conf.d/slim"
    : >"$root/etc/resolv.conf"
    : >"$root/etc/hostname"
}

make_tarball() {
    [ "$(id -u)" = 0 ] || die "$image is not there: pull it (docker pull $image), or run this script as root to make it"
    if ! command -v debootstrap >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
    fi
    local from tree
    from=$(mirror)
    mkdir -p "$cache"
    tree=$(mktemp -d "$cache/tree.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$tree'" EXIT
    echo "base-image: making $image${from:+ from $from}"
    debootstrap --variant=minbase "$suite" "$tree" ${from:+"$from"} >"$cache/debootstrap.log" 2>&1 ||
        { tail -n 20 "$cache/debootstrap.log" >&2; die "debootstrap failed; all it said is in $cache/debootstrap.log"; }
    add_security "$from" "$tree"
    slim "$tree"
    tar -C "$tree" --numeric-owner --one-file-system --exclude='./dev/*' -cf "$tarball.part" .
    mv "$tarball.part" "$tarball"
}

docker image inspect "$image" >/dev/null 2>&1 && exit 0
[ -s "$tarball" ] || make_tarball
docker import --change 'CMD ["/bin/bash"]' "$tarball" "$image" >/dev/null
echo "base-image: imported $image"
