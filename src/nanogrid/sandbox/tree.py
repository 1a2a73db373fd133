"""A sandbox that is a process tree of the worker: what `bwrap` and `process` have in common."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nanogrid.sandbox import processes
from nanogrid.sandbox.base import Limits, Reading
from nanogrid.sandbox.cgroup import Group
from nanogrid.sandbox.channel import ChannelSandbox

WATCH_S: Final = 0.5
LOST_S: Final = 0.5
"""How long a sandbox may take to end after its socket closed."""
GONE_S: Final = 5.0
"""How long `destroy` waits for processes after SIGKILL (uninterruptible I/O can hold one up)."""
NOFILE: Final = 1024
START: Final = (
    "ulimit -c 0; ulimit -n $1; shift; "
    'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
)
"""Shell script: limits, then into the control groups, then the command. A process that puts itself into its
groups before it becomes the sandbox can have no child outside of them."""


class TreeSandbox(ChannelSandbox):
    """One tree of processes, in a control group when there is one."""

    def __init__(self, id: str, run_dir: Path, level: str, group: Group | None, own_pids: int) -> None:
        """`own_pids`: how many processes at the root of the tree are the sandbox's own, not the user's."""
        super().__init__(id, run_dir)
        self.level = level
        self._group = group
        self._own_pids = own_pids
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._watching: asyncio.Future[None] | None = None
        self._limits = Limits()
        self._peak_mb = 0.0
        self._over = False
        self._closed = False

    @property
    def pid(self) -> int:
        """The root of the tree; 0 before `start`."""
        return self._process.pid if self._process is not None else 0

    def start(self, argv: list[str], env: dict[str, str], cwd: str | None = None, pass_fds: Sequence[int] = ()) -> None:
        """Starts the tree with its output on the log pipe.

        Raises:
            OSError: the command cannot be started.
        """
        joins = [str(path) for path in self._group.joins] if self._group is not None else []
        command = ["/bin/sh", "-c", START, "sh", str(NOFILE), *joins, "--", *argv]
        log = os.open(self.dir / "log", os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        finally:
            os.close(log)
        self._wait_for_end(self._process)
        if self._group is None:
            self._watching = asyncio.ensure_future(self.watch())

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> None:
        if hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(process.pid)
            self._loop.add_reader(self._pidfd, self._ended)
        else:
            waiting = self._loop.run_in_executor(None, process.wait)
            waiting.add_done_callback(lambda _: self._ended())

    def _ended(self) -> None:
        assert self._process is not None
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        # While the root is not waited for, its number cannot belong to another process group.
        self._kill_session()
        code = self._process.wait()
        self.end("out of memory" if self._over or self.read().oom else reason(code))
        if self._group is not None:
            self._group.kill()

    def lost(self) -> None:
        """Gives the processes a moment to end by themselves, for a better reason than our SIGKILL."""
        self._loop.call_later(LOST_S, self._kill_unless_gone)

    def _kill_unless_gone(self) -> None:
        if not self.exited.done():
            self.kill()

    def limit(self, limits: Limits) -> None:
        """Sets memory, processes and CPU. /tmp keeps the size it was launched with."""
        self._limits = limits
        if self._group is not None:
            self._group.limit(limits)

    def freeze(self) -> None:
        """Stops the processes."""
        if self._group is not None:
            self._group.freeze()
        elif not self.exited.done():
            processes.send(self._user_pids(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets them go on."""
        if self._group is not None:
            self._group.thaw()
        elif not self.exited.done():
            processes.send(self._user_pids(), signal.SIGCONT)

    def reset_peak(self) -> None:
        """Starts a new measurement of the memory peak."""
        self._peak_mb = 0.0
        if self._group is not None:
            self._group.reset_peak()

    def read(self) -> Reading:
        """The meters; without a control group the peak is what `watch` saw."""
        if self._group is not None:
            return self._group.read()
        if self._process is None or self.exited.done():
            return Reading(0.0, self._peak_mb, 0.0, self._over)
        pids = processes.tree(self.pid)
        now = processes.memory_mb(pids)
        self._peak_mb = max(self._peak_mb, now)
        return Reading(processes.cpu_ms(pids), self._peak_mb, now, self._over)

    async def watch(self) -> None:
        """The memory limit without a control group: sums the tree every WATCH_S and kills it when over.

        It cannot see what happens between two looks, nor processes that left the tree.
        """
        while not self.exited.done():
            await asyncio.sleep(WATCH_S)
            if self.read().memory_mb > self._limits.memory_mb:
                self._over = True
                self.kill()

    def _user_pids(self) -> list[int]:
        """The user's processes: all but the first ones, which are the sandbox's own."""
        if self.pid == 0:
            return []
        pids = processes.tree(self.pid)
        if self._group is None:
            return pids[self._own_pids :]
        own = set(pids[: self._own_pids])
        return [pid for pid in self._group.pids() if pid not in own]

    def terminate(self) -> None:
        """SIGTERM to the user's processes."""
        if not self.exited.done():
            processes.send(self._user_pids(), signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to all that belongs to the sandbox."""
        if self._group is not None:
            self._group.kill()
        elif not self.exited.done() and self.pid:
            processes.send(processes.tree(self.pid), signal.SIGKILL)
        if not self.exited.done():
            self._kill_session()

    def _kill_session(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def destroy(self) -> None:
        """Kills, waits, removes group and folder."""
        if self._closed:
            return
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        self.kill()
        if self._process is not None:
            await asyncio.wait({self.exited}, timeout=GONE_S)
        self.end("destroyed")
        if self._group is not None:
            await remove_group(self._group)
        await self.close()


async def remove_group(group: Group) -> None:
    """Removes a group as soon as the kernel has buried its processes; gives up after GONE_S."""
    until = time.monotonic() + GONE_S
    pause = 0.001
    while not group.remove() and time.monotonic() < until:
        group.kill()
        await asyncio.sleep(pause)
        pause = min(0.05, pause * 2)


def reason(code: int) -> str:
    """A return code in words. bwrap and shells report a signal as 128 + its number."""
    if code < 0:
        return f"signal {-code}"
    return f"signal {code - 128}" if 128 < code <= 128 + 64 else f"exit status {code}"
