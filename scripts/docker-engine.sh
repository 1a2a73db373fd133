#!/usr/bin/env bash
# Makes sure that a Docker Engine answers, for tests and for the docker isolation level on a bare machine.
#
# Does nothing where one answers already. Else, as root on Debian or Ubuntu, it installs the distribution's
# own package and starts the daemon in the background, where it stays until the machine goes down.
# The daemon's output is in $DOCKERD_LOG (default /var/log/dockerd.log).
set -euo pipefail

log=${DOCKERD_LOG:-/var/log/dockerd.log}
wait_s=60

answers() { command -v docker >/dev/null && timeout 20 docker info >/dev/null 2>&1; }

die() {
    echo "docker-engine: $*" >&2
    exit 1
}

install_engine() {
    command -v dockerd >/dev/null && return
    command -v apt-get >/dev/null || die "no dockerd and no apt-get: install Docker Engine by hand, then start it"
    echo "docker-engine: installing docker.io"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends docker.io iptables ca-certificates >/dev/null
}

mount_cgroups() {
    # A machine whose init mounted no cgroup hierarchy cannot run containers at all.
    [ -e /sys/fs/cgroup/cgroup.controllers ] && return
    mountpoint -q /sys/fs/cgroup || mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    local name
    while read -r name _ _ enabled; do
        [ "$enabled" = 1 ] || continue
        mkdir -p "/sys/fs/cgroup/$name"
        mountpoint -q "/sys/fs/cgroup/$name" ||
            mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/$name" 2>/dev/null ||
            rmdir "/sys/fs/cgroup/$name"
    done < <(grep -v '^#' /proc/cgroups)
}

start_engine() {
    # A second daemon would take the first one's bridge away, so one that is still starting is waited for.
    pgrep -x dockerd >/dev/null && return
    if [ -d /run/systemd/system ] && systemctl start docker 2>/dev/null; then return; fi
    mount_cgroups
    rm -f /var/run/docker.pid
    echo "docker-engine: starting dockerd, its output is in $log"
    setsid nohup dockerd >>"$log" 2>&1 </dev/null &
}

answers && exit 0
[ "$(id -u)" = 0 ] || die "no Docker Engine answers: start it (sudo systemctl start docker) or add yourself to the group docker"
install_engine
start_engine
for ((i = 0; i < wait_s * 2; i++)); do
    answers && exit 0
    sleep 0.5
done
tail -n 20 "$log" >&2 2>/dev/null || true
die "dockerd does not answer after $wait_s s; its last words are above"
