"""The docker level: every sandbox is a container of its own, hardened, without network, never used twice.

What a container may do is in `docker_config.py`, one screen. The engine's API is used to create, watch
and remove it; what lies on the path of an invocation (freezing, limits, meters) goes through the cgroup's
files where the worker may write them, because the API is fifty times slower.

Position in the path: `pool.py` asks for booted sandboxes here; nothing above knows of containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiodocker
import aiohttp
from aiodocker.exceptions import DockerError

from nanogrid.errors import SandboxFailed
from nanogrid.model.runtimes import RUNTIMES, Runtime
from nanogrid.sandbox.base import Limits, Reading
from nanogrid.sandbox.channel import ChannelSandbox, remove_folder
from nanogrid.sandbox.docker_cgroup import ContainerCgroup
from nanogrid.sandbox.docker_config import LABEL, boot_command, container_config, exit_reason, limit_config
from nanogrid.sandbox.docker_images import ensure_image

log = logging.getLogger(__name__)

HELLO_S: Final = 30.0
"""Seconds within which a bootstrap must be up; it takes a fraction of one unless the machine is swamped."""
ORPHAN_S: Final = 1.0
"""Seconds after the loss of the bootstrap's connection in which the container may end by itself."""
GONE_S: Final = 15.0
"""Seconds to wait for the end of a killed container."""
GET_ENGINE: Final = (
    "install Docker Engine (Debian: apt-get install docker.io), start it (systemctl start docker), "
    "and let this user talk to it (usermod -aG docker $USER, then log in again)"
)


class DockerSandbox(ChannelSandbox):
    """One container and the channel to its bootstrap."""

    level = "docker"

    def __init__(self, id: str, run_dir: Path, engine: aiodocker.Docker) -> None:
        super().__init__(id, run_dir)
        self._engine = engine
        self._container = engine.containers.container(f"nanogrid-{id}")
        self._pidfd = -1
        self._cgroup: ContainerCgroup | None = None
        self._calls: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._destroying: asyncio.Task[None] | None = None

    async def start(self, config: dict[str, Any]) -> None:
        """Creates and starts the container, and watches it from then on. Raises DockerError."""
        created = await self._engine.containers.create(config, name=f"nanogrid-{self.id}")
        await created.start()
        state = (await created.show())["State"]
        self._cgroup = ContainerCgroup.find(state["Pid"], created.id)
        if self._cgroup is not None:
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(state["Pid"])
        self._watching = self._loop.create_task(self._watch())

    # -- the end of the processes -------------------------------------------------------------------

    async def _watch(self) -> None:
        """Completes `exited`. The end is seen on the process itself where it is on this machine."""
        try:
            if self._pidfd >= 0:
                await self._process_end()
            if self._destroying is not None and self._pidfd >= 0:
                self.end("signal 9")
                return
            status = (await self._container.wait())["StatusCode"]
            state = (await self._container.show())["State"]
            self.end(exit_reason(status, bool(state["OOMKilled"])))
        except (DockerError, aiohttp.ClientError, TimeoutError, OSError) as error:
            asked = self._destroying is not None
            self.end("signal 9" if asked else f"lost: the Docker Engine does not answer for it ({error})")

    async def _process_end(self) -> None:
        ended = asyncio.Event()
        self._loop.add_reader(self._pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_lost(self) -> None:
        super()._on_lost()
        self._loop.call_later(ORPHAN_S, self._kill)

    def _kill(self) -> None:
        if self.exited.done():
            return
        self._thaw_files()
        if not self._signal(signal.SIGKILL):
            self._call(self._container.kill)

    def _signal(self, number: signal.Signals) -> bool:
        """Whether the signal went to the container's pid 1; the pidfd keeps it from anyone else's."""
        if self._pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except OSError:
            return False
        return True

    def terminate(self) -> None:
        """SIGTERM to the bootstrap, by way of the container's init; a frozen sandbox is thawed for it."""
        self.thaw()
        if not self._signal(signal.SIGTERM):
            self._call(lambda: self._container.kill(signal="SIGTERM"))

    async def destroy(self) -> None:
        """Kills everything, removes the container and the folder; idempotent, never raises."""
        if self._destroying is None:
            self._destroying = self._loop.create_task(self._destroy())
        await asyncio.shield(self._destroying)

    async def _destroy(self) -> None:
        if self._watching is not None:
            self._kill()
            await asyncio.wait({self._watching}, timeout=GONE_S)
        if self._calls is not None:
            await asyncio.wait({self._calls}, timeout=GONE_S)
        await _remove(self._container)
        if self._watching is not None:
            self._watching.cancel()
        self.end("signal 9")
        await self.close()

    # -- limits, freezing, meters -------------------------------------------------------------------

    def limit(self, limits: Limits) -> None:
        """Sets memory, CPU and pids. What is in /tmp counts as memory, whose limit holds for it too."""
        if self._cgroup is not None:
            with contextlib.suppress(OSError):
                self._cgroup.limit(limits)
                return
        path = f"containers/{self._container.id}/update"
        self._call(lambda: self._engine._query_json(path, "POST", data=limit_config(limits)))

    def freeze(self) -> None:
        """Stops the processes; idempotent."""
        if self._cgroup is not None:
            with contextlib.suppress(OSError):
                self._cgroup.freeze()
                return
        self._call(self._container.pause)

    def thaw(self) -> None:
        """Lets them go on; idempotent."""
        if not self._thaw_files():
            self._call(self._container.unpause)

    def _thaw_files(self) -> bool:
        if self._cgroup is None:
            return False
        try:
            self._cgroup.thaw()
        except FileNotFoundError:
            return True  # The processes are gone, and the cgroup with them.
        except OSError:
            return False
        return True

    def reset_peak(self) -> None:
        """Starts a new measurement of the memory peak where the kernel allows it."""
        if self._cgroup is not None:
            self._cgroup.reset_peak()

    def read(self) -> Reading:
        """The meters of the cgroup; zeros where it is out of sight or gone."""
        return self._cgroup.read() if self._cgroup is not None else Reading(0.0, 0.0, 0.0)

    def _call(self, request: Callable[[], Awaitable[Any]]) -> None:
        """Sends a request to the engine without waiting for it; requests of one sandbox keep their order."""
        before = self._calls

        async def after() -> None:
            if before is not None:
                await asyncio.wait({before})
            try:
                await request()
            except (DockerError, aiohttp.ClientError, TimeoutError) as error:
                # Pausing what is paused and signalling what is gone are answered with a conflict.
                if getattr(error, "status", 0) not in (404, 409, 500):
                    log.warning("engine_call_failed", extra={"sandbox": self.id, "error": str(error)})

        self._calls = self._loop.create_task(after())


async def _remove(container: aiodocker.containers.DockerContainer) -> bool:
    """Kills and removes a container; whether it is gone for sure."""
    try:
        await container.delete(force=True, v=True)
    except DockerError as error:
        return error.status in (404, 409)
    except (aiohttp.ClientError, TimeoutError):
        return False
    return True


async def _remove_left(container: aiodocker.containers.DockerContainer) -> bool:
    """Removes what a predecessor left; it may be frozen by a file, which the engine does not know of."""
    with contextlib.suppress(DockerError, aiohttp.ClientError, TimeoutError, OSError):
        pid = (await container.show())["State"]["Pid"]
        cgroup = ContainerCgroup.find(pid, container.id) if pid else None
        if cgroup is not None:
            cgroup.thaw()
    return await _remove(container)


class DockerLauncher:
    """Starts sandboxes as containers of the Docker Engine on this machine.

    The engine must see `run_dir` under the same path, because it mounts the sandboxes' folders.
    """

    level = "docker"

    def __init__(self, run_dir: Path, runtimes: Path, base_image: str, grid_id: str) -> None:
        """
        Args:
            run_dir: This worker's own folder; sandboxes live below it.
            runtimes: The folder with one folder per runtime family.
            base_image: What the images of the families are built from.
            grid_id: The label of this worker's containers; the same again after a restart of the worker.
        """
        self._run_dir = run_dir.resolve()
        self._runtimes = runtimes.resolve()
        self._base = base_image
        self._grid = grid_id
        self._engine: aiodocker.Docker | None = None
        self._images: dict[str, str] = {}
        self._building: dict[str, asyncio.Lock] = {}
        self._alive: set[str] = set()

    def _connect(self) -> aiodocker.Docker:
        if self._engine is None:
            try:
                self._engine = aiodocker.Docker()
            except (AssertionError, ValueError, OSError, DockerError) as error:
                raise SandboxFailed(f"no Docker Engine was found: {GET_ENGINE}") from error
        return self._engine

    async def check(self) -> str | None:
        """None when a Python sandbox starts; the first time this builds its image, which takes a minute."""
        try:
            await self._connect().system.info()
        except SandboxFailed as error:
            return error.detail
        except (DockerError, aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"the Docker Engine does not answer ({error}): {GET_ENGINE}"
        try:
            sandbox = await self.launch(RUNTIMES["python3"], Limits())
        except SandboxFailed as error:
            return error.detail
        await sandbox.destroy()
        return None

    async def launch(self, runtime: Runtime, limits: Limits, code: Path | None = None) -> DockerSandbox:
        """A booted sandbox, see the port.

        Raises:
            SandboxFailed: no engine, no image, or the bootstrap did not come up.
        """
        engine = self._connect()
        command = boot_command(runtime.family, self._runtimes)
        sandbox = DockerSandbox(secrets.token_hex(8), self._run_dir, engine)
        self._alive.add(sandbox.id)
        sandbox.exited.add_done_callback(lambda _: self._alive.discard(sandbox.id))
        try:
            image = await self._image(runtime.family)
            sandbox.open()
            source = code.resolve() if code is not None else sandbox.dir / "code"
            await sandbox.start(container_config(image, command, sandbox.dir, source, limits, self._grid))
            await sandbox.hello(HELLO_S)
        except (DockerError, aiohttp.ClientError, OSError, TimeoutError) as error:
            self._images.pop(runtime.family, None)
            await sandbox.destroy()
            raise SandboxFailed(f"the Docker Engine could not start a sandbox: {error}") from error
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    async def _image(self, family: str) -> str:
        async with self._building.setdefault(family, asyncio.Lock()):
            if family not in self._images:
                self._images[family] = await ensure_image(
                    self._connect(), family, self._runtimes, self._base, log.warning
                )
            return self._images[family]

    async def sweep(self) -> int:
        """Removes containers and folders of a predecessor with the same id; returns how many containers."""
        engine = self._connect()
        mine = {f"/nanogrid-{id}" for id in self._alive}
        try:
            listed = await engine.containers.list(all=True, filters={"label": [f"{LABEL}={self._grid}"]})
        except (DockerError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise SandboxFailed(f"the Docker Engine does not answer ({error}): {GET_ENGINE}") from error
        dead = [container for container in listed if not mine.intersection(container["Names"])]
        gone = await asyncio.gather(*(_remove_left(container) for container in dead))
        for folder in (self._run_dir / "sb").glob("*"):
            if folder.name not in self._alive:
                await remove_folder(folder)
        return sum(gone)

    async def close(self) -> None:
        """Closes the connection to the engine."""
        if self._engine is not None:
            await self._engine.close()
            self._engine = None
