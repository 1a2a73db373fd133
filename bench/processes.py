"""Processes: starting and ending them, and what they hold and use, read from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.client import BenchError

TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Child:
    """A server that the benchmark starts, in a session of its own, so that Ctrl-C reaches only the benchmark."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path | None = None, pipe: bool = False
    ) -> None:
        """
        Args:
            log: gets the output, and its last lines are told with an error.
            pipe: the standard output goes to `process.stdout` instead.
        """
        self.log = log
        self.argv = list(argv)
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self.argv, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if pipe else out,
                stderr=out, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the process that was started; its children are in `tree`."""
        return self.process.pid

    def fail(self, what: str) -> BenchError:
        """An error that tells the end of the log."""
        status = self.process.poll()
        ended = f", it ended with status {status}" if status is not None else ""
        return BenchError(f"{Path(self.argv[0]).name}: {what}{ended}: {self.tail() or 'nothing in its log'}")

    def tail(self) -> str:
        """The last lines of the log."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").strip().splitlines()
            return " | ".join(line.strip() for line in lines[-4:])
        return ""

    def wait_for_port(self, port: int, timeout_s: float = 30.0) -> None:
        """Returns when something listens; raises BenchError when nothing does in time."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return
            time.sleep(0.02)
        raise self.fail(f"nothing listens on port {port}")

    def stop(self, patience_s: float = 30.0) -> None:
        """SIGTERM, and SIGKILL to the whole group if that is not enough."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the state on, or None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def parent(pid: int) -> int:
    """The pid of the parent; 0 when there is none or the process is gone."""
    stat = _stat(pid)
    return int(stat[1]) if stat else 0


def comm(pid: int) -> str:
    """The name that the kernel shows for a process; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def all_pids() -> list[int]:
    """Every process that can be seen from here."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def tree(root: int) -> set[int]:
    """`root` and everything below it."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        children.setdefault(parent(pid), []).append(pid)
    found, waiting = set[int](), [root]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def pss_mib(pids: Iterable[int]) -> float:
    """The proportional set size of all of them together: shared pages count by their share.

    Raises:
        BenchError: one of them may not be read (it belongs to somebody else).
    """
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError as error:
            raise BenchError(f"the memory of process {pid} cannot be read: measure as root") from error
        for line in text.splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def cpu_s(pids: Iterable[int]) -> dict[int, float]:
    """Seconds of CPU that each of them has used, its waited-for children included."""
    used = {}
    for pid in pids:
        stat = _stat(pid)
        if stat is not None:
            used[pid] = sum(int(field) for field in stat[11:15]) * TICK_S
    return used
