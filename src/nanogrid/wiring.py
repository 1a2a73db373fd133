"""The composition root: settings in, processes out. The only place that knows every adapter."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
import uvloop

from nanogrid.controller.app import build_app
from nanogrid.controller.front import Front
from nanogrid.controller.services import Services
from nanogrid.credentials.file import FileSecrets, random_key_file
from nanogrid.credentials.keys import Keys
from nanogrid.deploy.publish import Publisher
from nanogrid.deploy.toolchains import Toolchains, runtimes_dir
from nanogrid.errors import ConfigError
from nanogrid.invoke.invoker import Invoker
from nanogrid.local.bus import Bus
from nanogrid.local.engine import SqliteEngine
from nanogrid.model.function import Version
from nanogrid.model.runtimes import RUNTIMES
from nanogrid.objects.local import LocalObjects
from nanogrid.queues.sqlite import SqliteQueue
from nanogrid.registry.objects import ObjectRegistry
from nanogrid.sandbox.base import Launcher
from nanogrid.sandbox.bwrap import BwrapLauncher
from nanogrid.sandbox.docker import DockerLauncher
from nanogrid.sandbox.loaded import Loaded, limits_of, place_code
from nanogrid.sandbox.pool import Pool, PoolLimits
from nanogrid.sandbox.process import ProcessLauncher
from nanogrid.settings import Settings
from nanogrid.state.sqlite import SqliteState
from nanogrid.triggers.reaper import Reaper
from nanogrid.triggers.schedule import Scheduler
from nanogrid.worker.callbacks import Callbacks
from nanogrid.worker.code_cache import CodeCache
from nanogrid.worker.node import WorkerNode

log = logging.getLogger(__name__)
LADDER = ("docker", "bwrap")
"""What `auto` tries, in this order; `process` must be asked for by name."""


class Stores:
    """The embedded adapters, opened by one process on one data folder."""

    def __init__(self, settings: Settings) -> None:
        self.data = Path(settings.data).resolve()
        self.run = self.data / "run"
        self.run.mkdir(parents=True, exist_ok=True)
        self.data.chmod(0o711)
        self.bus = Bus(self.run / "bus")
        self.engine = SqliteEngine(self.data / "grid.db", self.bus)
        self.state = SqliteState(self.engine, ttl_s=settings.state_ttl_s)
        self.queue = SqliteQueue(self.engine)
        self.objects = LocalObjects(self.data / "objects")
        self.registry = ObjectRegistry(self.objects, publish=self.bus.publish, subscribe=self.bus.subscribe)
        self.secrets = FileSecrets(self.data / "secrets")
        self.keys = Keys(self.data / "secrets")

    async def open(self) -> None:
        """Connects; must be called on the loop that uses the stores."""
        await self.bus.open()
        await self.engine.open()

    async def close(self) -> None:
        """Writes what lingers and closes."""
        await self.queue.close()
        await self.state.close()
        await self.engine.close()
        await self.bus.close()
        await self.objects.close()


def make_launcher(settings: Settings, level: str, node: str) -> Launcher:
    """The launcher of an isolation level, for one node's own run folder."""
    run = Path(settings.data).resolve() / "run" / node
    run.mkdir(parents=True, exist_ok=True)
    runtimes = runtimes_dir()
    if level == "docker":
        return DockerLauncher(run, runtimes, settings.base_image, f"{run}")
    interpreters = find_interpreters()
    if level == "bwrap":
        return BwrapLauncher(run, runtimes, interpreters)
    if level == "process":
        return ProcessLauncher(run, runtimes, interpreters)
    raise ConfigError(f"isolation = {level!r} is not known: use docker, bwrap, process or auto")


def find_interpreters() -> dict[str, list[str]]:
    """The command line in front of each family's bootstrap; a family without its interpreter is left out."""
    python = [str(Path(sys.executable).resolve()), "-I", "-S", "-B"]
    found = {"python3": python, "native": python}
    node = Toolchains().find("node")
    if node is not None:
        found["nodejs"] = [str(node)]
    return found


async def choose_isolation(settings: Settings) -> str:
    """The level to use; raises ConfigError that says what to install when none works."""
    wanted = LADDER if settings.isolation == "auto" else (settings.isolation,)
    problems = []
    for level in wanted:
        launcher = make_launcher(settings, level, "check")
        try:
            problem = await launcher.check()
        finally:
            await launcher.close()
        if problem is None:
            return level
        problems.append(f"  {level}: {problem}")
    hint = (
        ""
        if settings.isolation != "auto"
        else "\nFor development only, --isolation process runs functions without isolation."
    )
    raise ConfigError("no isolation level works here:\n" + "\n".join(problems) + hint)


async def serve_worker(settings: Settings, level: str, id: str, stop: asyncio.Event) -> None:
    """One worker process, until `stop`."""
    stores = Stores(settings)
    await stores.open()
    launcher = make_launcher(settings, level, id)
    cache = CodeCache(stores.objects, stores.data / "cache" / "code")
    callbacks = Callbacks(random_key_file(stores.data / "secrets" / "callback.key"))

    async def environment(version: Version) -> dict[str, str]:
        secrets = {name: await stores.secrets.get(name) for name in version.config.secrets}
        return {**version.config.env, **secrets}

    node: WorkerNode | None = None

    def cold(label: str) -> None:
        if node is not None:
            node.cold(label)

    families = tuple(sorted({r.family for r in RUNTIMES.values()}))
    limits = PoolLimits(settings.spares, settings.max_sandboxes, settings.freeze_after_s)
    pool = Pool(launcher, cache.folder, environment, limits, families, cold)
    node = WorkerNode(
        id, settings, stores.run / f"{id}.sock", stores.state, stores.queue, stores.objects, stores.registry,
        launcher, pool, callbacks,
    )  # fmt: skip
    node.stop = stop
    try:
        await node.serve()
    finally:
        await callbacks.close()
        await stores.close()


def make_probe(settings: Settings, launcher: Launcher) -> Callable[[Version, Path], Awaitable[None]]:
    """What a deploy tries before it publishes: the handler loads, in a sandbox like any other."""

    async def probe(version: Version, code: Path) -> None:
        sandbox = await launcher.launch(RUNTIMES[version.config.runtime], limits_of(version))
        try:
            place_code(code, sandbox.dir / "code")
            inside = "/var/task" if sandbox.level != "process" else str(sandbox.dir / "code")
            await Loaded(sandbox, version).load(inside, dict(version.config.env))
        finally:
            await sandbox.destroy()

    return probe


async def serve_controller(
    settings: Settings, level: str, id: str, stop: asyncio.Event, listener: socket.socket
) -> None:
    """One controller process, until `stop`."""
    stores = Stores(settings)
    await stores.open()
    launcher = make_launcher(settings, level, id)
    invoker = Invoker(stores.state, stores.queue, stores.objects, stores.registry)
    publisher = Publisher(
        stores.objects, stores.registry, stores.data / "build", stores.data / "cache" / "build", Toolchains(),
        make_probe(settings, launcher),
    )  # fmt: skip
    services = Services(
        registry=stores.registry, state=stores.state, objects=stores.objects, queue=stores.queue, invoker=invoker,
        publisher=publisher, secrets=stores.secrets, keys=stores.keys, settings=settings, isolation=level,
    )  # fmt: skip
    front = Front(invoker, stores.registry, stores.keys, settings.sync_wait_s, settings.max_event_mb << 20)
    config = uvicorn.Config(
        build_app(services), http=front.protocol(), loop="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, date_header=False, timeout_graceful_shutdown=5, backlog=2048, timeout_keep_alive=75,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    duties = [
        asyncio.ensure_future(duty)
        for duty in (
            invoker.serve(),
            Scheduler(id, stores.registry, stores.state, invoker).serve(),
            Reaper(id, stores.state, stores.queue).serve(),
        )
    ]
    serving = asyncio.ensure_future(server._serve(sockets=[listener]))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((serving, stopping, *duties), return_when=asyncio.FIRST_COMPLETED)
    services.stopping.set()
    await invoker.drain()
    server.should_exit = True
    await serving
    for duty in duties:
        duty.cancel()
    outcomes = await asyncio.gather(*duties, return_exceptions=True)
    await launcher.close()
    await stores.close()
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def run_node(role: str, id: str, level: str, settings: Settings, listener: socket.socket | None = None) -> None:
    """The main function of a controller or worker process; ends at SIGTERM, after draining."""
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=f"%(asctime)s %(levelname)s {id} %(name)s %(message)s",
        stream=sys.stderr,
    )
    shutil.rmtree(Path(settings.data).resolve() / "run" / id, ignore_errors=True)

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if os.getppid() == 1:
            stop.set()
        if role == "worker":
            await serve_worker(settings, level, id, stop)
        else:
            assert listener is not None
            await serve_controller(settings, level, id, stop, listener)

    uvloop.run(serve())
