"""Control groups, version 1 and 2: limits, freezer, meters and a kill that nothing escapes.

The group of a sandbox is `nanogrid/<id>` below the worker's own group, so that whatever limits the worker
limits its sandboxes too. Its files stay open: the hot path (freeze, thaw, read) is one system call each.
No rights to make groups means no `Hierarchy`; `tree.py` then does with signals and /proc what it can.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final, Protocol

from nanogrid.sandbox.base import Limits, Reading

MIB: Final = 1 << 20
PERIOD_US: Final = 100_000
FOLDER: Final = "nanogrid"
NEEDED: Final[tuple[str, ...]] = ("memory", "pids", "freezer")
"""Version 1 hierarchies without which groups are not used at all."""
WANTED: Final[tuple[str, ...]] = ("cpu", "cpuacct")


class Group(Protocol):
    """The control group of one sandbox."""

    joins: list[Path]
    """The files that a process writes 0 (itself) into before it becomes the sandbox."""

    def limit(self, limits: Limits) -> None:
        """Sets memory (with swap), processes and CPU."""
        ...

    def freeze(self) -> None:
        """Stops every process of the group."""
        ...

    def thaw(self) -> None:
        """Lets them go on."""
        ...

    def reset_peak(self) -> None:
        """Starts a new measurement of the memory peak."""
        ...

    def read(self) -> Reading:
        """The meters."""
        ...

    def pids(self) -> list[int]:
        """The processes of the group."""
        ...

    def kill(self) -> None:
        """SIGKILL to all, also when frozen."""
        ...

    def remove(self) -> bool:
        """Removes the group; False while processes are still in it."""
        ...


class Hierarchy(Protocol):
    """Where groups are made."""

    def create(self, id: str) -> Group:
        """A new group."""
        ...

    def leftovers(self) -> list[str]:
        """Ids of the groups that exist."""
        ...

    def adopt(self, id: str) -> Group:
        """The handle to a group that exists."""
        ...

    def remove(self) -> None:
        """Removes the empty folder of all groups."""
        ...


class _File:
    """An open cgroup file."""

    __slots__ = ("_fd",)

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def text(self) -> str:
        """The content; empty when the file or the group is gone."""
        try:
            return os.pread(self._fd, 4096, 0).decode()
        except OSError:
            return ""

    def number(self) -> int:
        """The content as a number, 0 when it is none."""
        text = self.text().strip()
        return int(text) if text.isdigit() else 0

    def write(self, value: bytes) -> None:
        """Writes; a group that is gone does not mind."""
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, value, 0)

    def close(self) -> None:
        """Closes; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def field(text: str, name: str) -> int:
    """The number behind `name` in a file of `name number` lines."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _write(path: Path, value: object) -> None:
    with contextlib.suppress(OSError):
        path.write_text(str(value))


class GroupV1:
    """A folder in each of several hierarchies."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        # `tasks` and not `cgroup.procs`: a thread that moves itself alone takes no machine-wide lock, which
        # saves milliseconds per hierarchy (Linux kernel/cgroup/cgroup.c, cgroup_procs_write_start).
        self.joins = [folder / "tasks" for folder in folders.values()]
        memory = folders["memory"]
        self._state = _File(folders["freezer"] / "freezer.state", os.O_WRONLY)
        self._cpu = _File(folders.get("cpuacct", memory) / "cpuacct.usage")
        self._peak = _File(memory / "memory.max_usage_in_bytes", os.O_RDWR)
        self._usage = _File(memory / "memory.usage_in_bytes")
        self._oom = _File(memory / "memory.oom_control")

    def limit(self, limits: Limits) -> None:
        memory = self._folders["memory"]
        # Memory may never exceed memory plus swap, so raising needs the second first and lowering the
        # reverse; writing the first again covers both.
        for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.limit_in_bytes"):
            _write(memory / name, limits.memory_mb * MIB)
        _write(self._folders["pids"] / "pids.max", limits.pids)
        if "cpu" in self._folders:
            _write(self._folders["cpu"] / "cpu.cfs_quota_us", int(limits.cpus * PERIOD_US))

    def freeze(self) -> None:
        self._state.write(b"FROZEN")

    def thaw(self) -> None:
        self._state.write(b"THAWED")

    def reset_peak(self) -> None:
        self._peak.write(b"0")

    def read(self) -> Reading:
        return Reading(
            cpu_ms=self._cpu.number() / 1e6,
            memory_peak_mb=self._peak.number() / MIB,
            memory_mb=self._usage.number() / MIB,
            oom=field(self._oom.text(), "oom_kill") > 0,
        )

    def pids(self) -> list[int]:
        return _pids(self._folders["pids"] / "cgroup.procs")

    def kill(self) -> None:
        _kill(self.pids())
        self.thaw()

    def remove(self) -> bool:
        for file in (self._state, self._cpu, self._peak, self._usage, self._oom):
            file.close()
        return all([_rmdir(folder) for folder in self._folders.values()])


class GroupV2:
    """One folder of the unified hierarchy."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.joins = [folder / "cgroup.procs"]
        self._freeze = _File(folder / "cgroup.freeze", os.O_WRONLY)
        self._cpu = _File(folder / "cpu.stat")
        # A write resets the peak for this descriptor alone (Linux 6.12); older kernels only let it be read.
        self._peak = _File(folder / "memory.peak", os.O_RDWR)
        if not self._peak.text():
            self._peak = _File(folder / "memory.peak")
        self._usage = _File(folder / "memory.current")
        self._events = _File(folder / "memory.events")

    def limit(self, limits: Limits) -> None:
        _write(self._folder / "memory.max", limits.memory_mb * MIB)
        _write(self._folder / "memory.swap.max", 0)
        _write(self._folder / "pids.max", limits.pids)
        _write(self._folder / "cpu.max", f"{int(limits.cpus * PERIOD_US)} {PERIOD_US}")

    def freeze(self) -> None:
        self._freeze.write(b"1")

    def thaw(self) -> None:
        self._freeze.write(b"0")

    def reset_peak(self) -> None:
        self._peak.write(b"0")

    def read(self) -> Reading:
        now = self._usage.number() / MIB
        return Reading(
            cpu_ms=field(self._cpu.text(), "usage_usec") / 1000,
            memory_peak_mb=self._peak.number() / MIB or now,
            memory_mb=now,
            oom=field(self._events.text(), "oom_kill") > 0,
        )

    def pids(self) -> list[int]:
        return _pids(self.joins[0])

    def kill(self) -> None:
        _write(self._folder / "cgroup.kill", 1)
        _kill(self.pids())
        self.thaw()

    def remove(self) -> bool:
        for file in (self._freeze, self._cpu, self._peak, self._usage, self._events):
            file.close()
        return _rmdir(self._folder)


class HierarchyV1:
    """The worker's own folders in the hierarchies of version 1."""

    def __init__(self, bases: dict[str, Path]) -> None:
        self._bases = bases

    def create(self, id: str) -> GroupV1:
        return GroupV1({name: base / id for name, base in self._bases.items()})

    def leftovers(self) -> list[str]:
        return sorted({id for base in self._bases.values() for id in _folders(base)})

    def adopt(self, id: str) -> GroupV1:
        return self.create(id)

    def remove(self) -> None:
        for base in self._bases.values():
            _rmdir(base)


class HierarchyV2:
    """The worker's own folder in the unified hierarchy."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def create(self, id: str) -> GroupV2:
        return GroupV2(self._base / id)

    def leftovers(self) -> list[str]:
        return _folders(self._base)

    def adopt(self, id: str) -> GroupV2:
        return self.create(id)

    def remove(self) -> None:
        _rmdir(self._base)


def find_hierarchy(root: Path = Path("/sys/fs/cgroup"), own: str | None = None) -> Hierarchy | None:
    """Where this process may make groups with memory, process and freezer control; None when nowhere.

    Args:
        root: where cgroup file systems are mounted.
        own: the text of /proc/self/cgroup.
    """
    if own is None:
        try:
            own = Path("/proc/self/cgroup").read_text()
        except OSError:
            return None
    paths = {name: path for _, names, path in _entries(own) for name in names.split(",")}
    try:
        if (root / "cgroup.controllers").exists():
            return _find_v2(root, paths.get("", "/"))
        return _find_v1(root, paths)
    except OSError:
        return None


def _find_v1(root: Path, paths: dict[str, str]) -> Hierarchy | None:
    if any(name not in paths for name in NEEDED):
        return None
    bases: dict[str, Path] = {n: root / n / paths[n].lstrip("/") / FOLDER for n in (*NEEDED, *WANTED) if n in paths}
    for base in bases.values():
        base.mkdir(exist_ok=True)
    return HierarchyV1(bases)


def _find_v2(root: Path, path: str) -> Hierarchy | None:
    own = root / path.lstrip("/")
    if not {"memory", "pids"} <= set((own / "cgroup.controllers").read_text().split()):
        return None
    base = own / FOLDER
    base.mkdir(exist_ok=True)
    for folder in (own, base):
        for name in ("memory", "pids", "cpu"):
            if name not in (folder / "cgroup.subtree_control").read_text().split():
                try:
                    (folder / "cgroup.subtree_control").write_text(f"+{name}")
                except OSError:
                    # A group with processes cannot hand controllers down: the worker moves to a leaf.
                    leaf = own / "nanogrid-worker"
                    leaf.mkdir(exist_ok=True)
                    (leaf / "cgroup.procs").write_text(str(os.getpid()))
                    (folder / "cgroup.subtree_control").write_text(f"+{name}")
    return HierarchyV2(base)


def _entries(own: str) -> list[tuple[str, str, str]]:
    found = []
    for line in own.splitlines():
        number, names, path = line.split(":", 2)
        found.append((number, names, path))
    return found


def _folders(base: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in base.iterdir() if entry.is_dir())
    except OSError:
        return []


def _pids(procs: Path) -> list[int]:
    try:
        return [int(line) for line in procs.read_text().split()]
    except OSError:
        return []


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _rmdir(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def wait_removed(group: Group, timeout_s: float) -> bool:
    """Kills and removes a group of a dead predecessor; blocks, for use at start only."""
    until = time.monotonic() + timeout_s
    group.kill()
    while not group.remove():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
        group.kill()
    return True
