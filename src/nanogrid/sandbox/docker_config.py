"""What a sandbox's container is allowed: its whole definition, and the words for its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from nanogrid.errors import SandboxFailed
from nanogrid.sandbox.base import Limits
from nanogrid.sandbox.channel import CODE_INSIDE, INSIDE, RUNTIME_INSIDE, bootstrap_env, under_redirect
from nanogrid.sandbox.docker_cgroup import MIB
from nanogrid.sandbox.seccomp import docker_profile

LABEL: Final = "nanogrid.grid"
NOBODY: Final = "65534:65534"
PYTHON: Final = ["/usr/bin/python3", "-I", "-S", "-B"]
INTERPRETERS: Final = {"python3": PYTHON, "native": PYTHON, "nodejs": ["/usr/bin/node"]}
"""Where the images of the families have what runs the bootstrap."""
INODES_PER_MIB: Final = 256
"""Files that /tmp may hold per MiB of it: a flood of empty files stops there."""


def boot_command(family: str, runtimes: Path) -> list[str]:
    """How a family's bootstrap is started inside its image."""
    found = sorted(file.name for file in (runtimes / family).glob("bootstrap.*"))
    if not found or family not in INTERPRETERS:
        raise SandboxFailed(f"{runtimes / family} has no bootstrap, so {family} functions cannot run here")
    return [*INTERPRETERS[family], f"{RUNTIME_INSIDE}/{found[0]}"]


def container_config(
    image: str, command: list[str], folder: Path, code: Path, limits: Limits, grid: str
) -> dict[str, Any]:
    """The whole definition of a sandbox's container, as the engine's API takes it.

    Args:
        folder: The sandbox's folder on the host, seen as /run/nanogrid: socket and log, read-only otherwise.
        code: The code on the host, seen as /var/task, read-only.
        limits: For /tmp these are final: a mounted tmpfs keeps its size.
        grid: Whose container it is; `sweep` looks for it.
    """
    tmp = f"rw,exec,nosuid,nodev,mode=1777,size={limits.tmp_mb}m,nr_inodes={limits.tmp_mb * INODES_PER_MIB}"
    return {
        "Image": image,
        "Entrypoint": under_redirect(f"{INSIDE}/log", command),
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in bootstrap_env(f"{INSIDE}/s").items()],
        "User": NOBODY,
        "WorkingDir": "/tmp",
        "Hostname": "sandbox",
        "Labels": {LABEL: grid},
        "HostConfig": {
            "NetworkMode": limits.network,
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": tmp},
            "Mounts": [_bind(folder, INSIDE), _bind(code, CODE_INSIDE)],
            "CapDrop": ["ALL"],
            "Privileged": False,
            "SecurityOpt": ["no-new-privileges", f"seccomp={json.dumps(docker_profile())}"],
            **limit_config(limits),
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "nofile", "Soft": 1024, "Hard": 1024},
            ],
            "ShmSize": min(limits.tmp_mb, 64) * MIB,
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            # Pid 1 is the engine's init: it hands SIGTERM on, which the kernel would keep from a pid 1 that
            # has no handler for it, and it reaps what user code leaves behind.
            "Init": True,
            # Under memory pressure of the whole machine a function goes before the worker does.
            "OomScoreAdj": 500,
        },
    }


def limit_config(limits: Limits) -> dict[str, int]:
    """The part of a container's definition that can change while it is up; swap is never added to memory."""
    memory = limits.memory_mb * MIB
    return {
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": round(limits.cpus * 1e9),
        "PidsLimit": limits.pids,
    }


def _bind(source: Path, target: str) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": True,
        "BindOptions": {"Propagation": "rprivate"},
    }


def exit_reason(status: int, out_of_memory: bool) -> str:
    """How a container ended, in the words of the sandbox port; the init reports a signal as 128 + number."""
    if out_of_memory:
        return "out of memory"
    return f"signal {status - 128}" if 128 < status < 192 else f"exit status {status}"
