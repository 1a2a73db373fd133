"""The `process` level: the bootstrap as a plain child of the worker. For development only.

It bounds what a mistake can do (own session, no new privileges, no core files, a control group when the
worker may make one, death with the worker), not what an attack can: user code is the worker's own user, sees
its files and its network. It must be asked for by name and is never fallen back to.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Final

from nanogrid.errors import SandboxFailed
from nanogrid.model.runtimes import RUNTIMES, Runtime
from nanogrid.sandbox.base import Limits
from nanogrid.sandbox.bwrap import HELLO_S, bootstrap_of, sweep
from nanogrid.sandbox.cgroup import Hierarchy, find_hierarchy
from nanogrid.sandbox.channel import bootstrap_env
from nanogrid.sandbox.tree import TreeSandbox

SOCKET_PATH_MAX: Final = 107
"""Bytes in struct sockaddr_un less its final NUL (unix(7))."""


class ProcessLauncher:
    """Makes sandboxes that are ordinary processes."""

    level = "process"

    def __init__(self, run_dir: Path, runtimes: Path, interpreters: dict[str, list[str]]) -> None:
        """The arguments are those of `BwrapLauncher`."""
        self._run_dir = run_dir.absolute()
        self._runtimes = runtimes.absolute()
        self._interpreters = interpreters
        self._hierarchy: Hierarchy | None = find_hierarchy()
        setpriv = shutil.which("setpriv")
        # Without setpriv (macOS) the sandbox outlives a worker that is killed until it reads from its socket.
        self._guard = [setpriv, "--no-new-privs", "--pdeathsig", "KILL"] if setpriv else []

    async def check(self) -> str | None:
        """Starts a real sandbox."""
        runtime = next((r for r in RUNTIMES.values() if r.family in self._interpreters), None)
        if runtime is None:
            return "no interpreter is known: install python3 or node"
        try:
            sandbox = await self.launch(runtime, Limits())
        except SandboxFailed as error:
            return error.detail
        await sandbox.destroy()
        return None

    async def launch(self, runtime: Runtime, limits: Limits, code: Path | None = None) -> TreeSandbox:
        """A booted sandbox; see `base.Launcher`. The code stays where it is."""
        interpreter = self._interpreters.get(runtime.family)
        if interpreter is None:
            raise SandboxFailed(f"no interpreter for {runtime.id} is installed on this worker")
        id = secrets.token_hex(8)
        group = self._hierarchy.create(id) if self._hierarchy is not None else None
        sandbox = TreeSandbox(id, self._run_dir, self.level, group, 0)
        socket = str(sandbox.dir / "s")
        try:
            if len(socket.encode()) > SOCKET_PATH_MAX:
                raise SandboxFailed(f"too long a path for a socket, use a shorter run folder: {self._run_dir}")
            sandbox.open()
            sandbox.limit(limits)
            bootstrap = str(self._runtimes / runtime.family / bootstrap_of(runtime.family))
            folder = str(code or sandbox.dir / "code")
            sandbox.start([*self._guard, *interpreter, bootstrap], env=bootstrap_env(socket), cwd=folder)
            await sandbox.hello(HELLO_S)
        except OSError as error:
            await sandbox.destroy()
            raise SandboxFailed(f"the process level cannot start a sandbox: {error}") from error
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    async def sweep(self) -> int:
        """Removes folders and groups of a crashed predecessor, with what still runs in them."""
        return await sweep(self._run_dir, self._hierarchy)

    async def close(self) -> None:
        """Removes the empty folder of groups."""
        if self._hierarchy is not None:
            self._hierarchy.remove()
