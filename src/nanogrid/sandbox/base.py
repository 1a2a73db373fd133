"""The sandbox port: an isolated place in which one version's code runs, one invocation at a time.

A launcher makes *booted* sandboxes: the runtime is started and has said HELLO on its channel, but no
user code is in it. `pool.py` keeps spares of them, `load` gives one its code. A sandbox is never handed
from one version to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from nanogrid.model.runtimes import Runtime


class Limits(NamedTuple):
    """What a sandbox may use; memory and /tmp in MiB."""

    memory_mb: int = 256
    cpus: float = 1.0
    pids: int = 128
    tmp_mb: int = 64
    network: str = "none"


class Reading(NamedTuple):
    """Use so far, as the cgroup (or /proc) tells: CPU in ms in total, memory peak and now in MiB."""

    cpu_ms: float
    memory_peak_mb: float
    memory_mb: float
    oom: bool = False


class Sandbox(Protocol):
    """One isolated process tree and the socket to its bootstrap.

    Directory layout on the host (`dir`): `s` the unix socket, `log` a FIFO that gets stdout and stderr,
    `code/` what the sandbox sees as its read-only code folder.
    """

    id: str
    level: str
    dir: Path
    on_frame: Callable[[int, bytes, bytes], None]
    """Set by the owner: called with (kind, meta, payload) of every frame the bootstrap sends."""
    on_log: Callable[[bytes], None]
    """Set by the owner: called with what arrives on stdout and stderr."""
    exited: asyncio.Future[str]
    """Done when the process tree is gone, with the reason (`exit status 1`, `signal 9`, `out of memory`)."""

    def send(self, kind: int, meta: bytes, payload: bytes = b"") -> None:
        """Sends a frame to the bootstrap."""
        ...

    def drain_log(self) -> None:
        """Hands over all that is in the log pipe now, so that output written before a RESULT comes first."""
        ...

    def limit(self, limits: Limits) -> None:
        """Sets the limits of the version that is about to be loaded (a pooled sandbox boots with wide ones)."""
        ...

    def freeze(self) -> None:
        """Stops the processes; idempotent. A frozen sandbox uses no CPU."""
        ...

    def thaw(self) -> None:
        """Lets them go on; idempotent."""
        ...

    def reset_peak(self) -> None:
        """Starts a new measurement of the memory peak where the kernel allows it."""
        ...

    def read(self) -> Reading:
        """Reads the meters; never raises, zeros when the sandbox is gone."""
        ...

    def terminate(self) -> None:
        """SIGTERM to the user's processes: the first step of a cancel."""
        ...

    async def destroy(self) -> None:
        """SIGKILL to all, waits until they are gone, removes `dir`; idempotent, never raises."""
        ...


class Launcher(Protocol):
    """Makes sandboxes at one isolation level."""

    level: str

    async def check(self) -> str | None:
        """None when this level works here (a real sandbox was started), else what is missing and how to get it."""
        ...

    async def launch(self, runtime: Runtime, limits: Limits, code: Path | None = None) -> Sandbox:
        """A booted sandbox. With `code` that folder is mounted instead of `dir/code` (for large trees).

        Raises:
            SandboxFailed: with the end of what the bootstrap printed.
        """
        ...

    async def sweep(self) -> int:
        """Removes what a crashed predecessor with the same run folder left behind; returns how many."""
        ...

    async def close(self) -> None:
        """Frees the engine's connection. Sandboxes are destroyed by their owners before."""
        ...
