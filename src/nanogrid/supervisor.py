"""`nanogrid up`: a controller and a few workers under one parent that restarts what dies."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from nanogrid.errors import ConfigError
from nanogrid.settings import Settings
from nanogrid.wiring import Stores, choose_isolation, run_node

log = logging.getLogger(__name__)
TICK_S = 0.1
BACKOFF_S = 5.0
"""A process that dies sooner than this after its start is not restarted before it is over."""
PR_SET_PDEATHSIG = 1


def _node(role: str, id: str, level: str, settings: Settings, listener: socket.socket | None, parent: int) -> None:
    """In the child: dies with the supervisor, in its own session, so that Ctrl-C reaches only the supervisor."""
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return
    run_node(role, id, level, settings, listener)


class _Child:
    def __init__(self, id: str, start: Callable[[], BaseProcess]) -> None:
        self.id = id
        self._start = start
        self.process = start()
        self.started = time.monotonic()
        self.lives = 1
        self.forgotten = False

    def restart(self) -> None:
        self.process = self._start()
        self.started = time.monotonic()
        self.lives += 1
        self.forgotten = False


class Supervisor:
    """Owns the listening socket, so that a restarted controller goes on with the same port."""

    def __init__(self, settings: Settings, level: str, listener: socket.socket) -> None:
        self._settings = settings
        self._level = level
        self._listener = listener
        self._context = multiprocessing.get_context("spawn")
        self._children: list[_Child] = []
        self._stopping = False
        self._since = time.time()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Starts everything, keeps it alive, and returns when all is drained after SIGTERM or Ctrl-C."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop)
        self._children.append(self._child("controller", "controller-1", self._listener))
        for index in range(1, self._settings.workers + 1):
            self._children.append(self._child("worker", f"worker-{index}", None))
        stores = Stores(self._settings)
        await stores.open()
        try:
            ready = False
            while not self._stopping:
                if not ready and await self._all_live(stores):
                    ready = True
                    on_ready()
                await self._revive(stores)
                await asyncio.sleep(TICK_S if ready else TICK_S / 2)
        finally:
            await asyncio.to_thread(self._drain)
            await stores.close()

    def _child(self, role: str, id: str, listener: socket.socket | None) -> _Child:
        def start() -> BaseProcess:
            arguments = (role, id, self._level, self._settings, listener, os.getpid())
            process = self._context.Process(target=_node, args=arguments, name=id)
            process.start()
            return process

        return _Child(id, start)

    async def _all_live(self, stores: Stores) -> bool:
        """Whether every worker that was started here has said that it lives, and the controller answers."""
        live = [w for w in await stores.state.workers() if w.started_at >= self._since and not w.draining]
        return len(live) >= self._settings.workers and await asyncio.to_thread(_answers, self._listener)

    def _stop(self) -> None:
        if self._stopping:
            # The second Ctrl-C: now.
            for child in self._children:
                child.process.kill()
        self._stopping = True

    async def _revive(self, stores: Stores) -> None:
        for child in self._children:
            if child.process.is_alive() or self._stopping:
                continue
            if child.id.startswith("worker") and not child.forgotten:
                # A dead worker's leases end now and not in half a minute.
                await stores.state.remove_worker(child.id)
                child.forgotten = True
            if child.lives > 2 and time.monotonic() - child.started < BACKOFF_S:
                continue
            log.warning("restarting node=%s exit=%s", child.id, child.process.exitcode)
            child.restart()

    def _drain(self) -> None:
        """The controller first, so that nothing new comes in; then the workers finish."""
        for child in self._children:
            if child.process.is_alive() and child.process.pid:
                os.kill(child.process.pid, signal.SIGTERM)
            if child.id.startswith("controller"):
                child.process.join(timeout=15.0)
        until = time.monotonic() + self._settings.drain_s + 15.0
        for child in self._children:
            child.process.join(timeout=max(0.1, until - time.monotonic()))
            if child.process.is_alive():
                child.process.kill()
                child.process.join()


def _answers(listener: socket.socket) -> bool:
    host, port = listener.getsockname()[:2]
    try:
        with socket.create_connection((host, port), timeout=1.0) as probe:
            probe.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            return probe.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


@contextlib.contextmanager
def _only_one(data: Path) -> Iterator[None]:
    """Two grids on one data folder would fight over it."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"a grid already uses the data folder {data}: stop it, or take another with --data"
            ) from error
        yield


def listen(host: str, port: int) -> socket.socket:
    """The controller's socket; raises ConfigError that names the way out."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another port with --port"
        ) from error
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def up(settings: Settings, on_ready: Callable[[str, str, str], None]) -> None:
    """Runs an embedded grid until it is told to stop.

    Args:
        settings: all settings; `data` is created when it is not there.
        on_ready: called with URL, key and isolation level when calls are served.

    Raises:
        ConfigError: the port or the data folder is taken, or no isolation level works.
    """
    data = Path(settings.data).resolve()
    with _only_one(data):
        listener = listen(settings.host, settings.port)
        level = asyncio.run(choose_isolation(settings))
        key = Stores(settings).keys.bootstrap(data / "key")
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        asyncio.run(Supervisor(settings, level, listener).run(lambda: on_ready(url, key, level)))
