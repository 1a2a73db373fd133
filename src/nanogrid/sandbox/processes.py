"""Trees of processes seen through /proc: what a worker without control groups can still do and measure."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


def tree(root: int) -> list[int]:
    """`root` and all that descends from it, parents first. A process that left its parents is not in it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir(PROC) if PROC.is_dir() else ():  # noqa: PTH208 - names are all that is wanted
        if name.isdigit():
            children.setdefault(_stat(int(name), 1), []).append(int(name))
    found, at = [root], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    """Sends a signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def cpu_ms(pids: list[int]) -> float:
    """CPU time in user and kernel mode of the living, with that of their waited-for children."""
    ticks = sum(max(0, _stat(pid, field)) for pid in pids for field in (11, 12, 13, 14))
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def memory_mb(pids: list[int]) -> float:
    """Proportional memory in MiB: shared pages count once; resident memory where that cannot be read."""
    return sum(_memory_kb(pid) for pid in pids) / 1024


def _memory_kb(pid: int) -> int:
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            for line in (PROC / str(pid) / name).read_text().splitlines():
                if line.startswith(key):
                    return int(line.split()[1])
        except OSError:
            continue
    return 0


def _stat(pid: int, field: int) -> int:
    """A field of /proc/<pid>/stat, counted from the state, which is 0; -1 when the process is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return -1
    # The command's name is in parentheses and may itself contain spaces and parentheses.
    return int(text.rpartition(")")[2].split()[field])
