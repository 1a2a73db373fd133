"""Spare sandboxes per runtime family, warm ones per version, and who gets the next one."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nanogrid.errors import NanoGridError
from nanogrid.model.function import Version
from nanogrid.model.invocation import ErrorClass, Failure
from nanogrid.model.runtimes import RUNTIMES
from nanogrid.sandbox.base import Launcher, Limits, Sandbox
from nanogrid.sandbox.loaded import LINK_LIMIT, Loaded, LoadFailed, count_files, limits_of, place_code

log = logging.getLogger(__name__)
TICK_S = 0.02
SWEEP_S = 0.5
COLD_MS = 25.0
"""What a cold start costs, for the decision whether waiting is cheaper."""
PROMPT_MS = 1.0
"""A queue longer than this is worth another sandbox while a core has none."""
LATE_MS = 250.0
"""Whoever waited so long gets a sandbox, whatever the estimates say."""
MAX_SPARES = 16


class Waiter(Protocol):
    """An attempt that wants a sandbox."""

    def ready(self, loaded: Loaded) -> None:
        """Here is one; it is the attempt's until `Pool.release` or `Pool.discard`."""
        ...

    def failed(self, failure: Failure) -> None:
        """None could be made."""
        ...


class PoolLimits(NamedTuple):
    """What a worker may hold."""

    spares: int = 2
    max_sandboxes: int = 64
    freeze_after_s: float = 1.0


def sandboxes_to_start(waiting: int, starting: int, busy: int, mean_ms: float, oldest_ms: float, cpus: int) -> int:
    """How many more sandboxes of a version to start.

    Waiting is better than starting while the busy ones will be free sooner than a cold start takes; unless
    somebody has waited for so long already that the estimate was wrong. A short function on every core is
    bound by the cores: more sandboxes would only take turns on them.
    """
    need = waiting - starting
    if need <= 0:
        return 0
    if busy == 0 or mean_ms >= COLD_MS:
        return need
    late = oldest_ms >= COLD_MS
    if busy + starting >= cpus:
        return 1 if oldest_ms >= LATE_MS else 0
    return min(need, cpus - busy - starting) if late or waiting * mean_ms / busy >= mean_ms + PROMPT_MS else 0


class _Shelf:
    """The sandboxes of one version."""

    __slots__ = ("busy", "idle", "mean_ms", "starting", "version", "waiting")

    def __init__(self, version: Version) -> None:
        self.version = version
        self.idle: list[Loaded] = []
        self.busy = 0
        self.starting = 0
        self.waiting: deque[tuple[float, Waiter]] = deque()
        self.mean_ms = 0.0


class Pool:
    """All sandboxes of one worker. Not thread-safe: everything happens on the loop."""

    def __init__(
        self,
        launcher: Launcher,
        code_of: Callable[[Version], Awaitable[Path]],
        env_of: Callable[[Version], Awaitable[dict[str, str]]],
        limits: PoolLimits,
        families: tuple[str, ...],
        on_cold: Callable[[str], None],
    ) -> None:
        self._launcher = launcher
        self._code_of = code_of
        self._env_of = env_of
        self._limits = limits
        self._on_cold = on_cold
        self._cpus = max(2, os.cpu_count() or 2)
        self._shelves: OrderedDict[str, _Shelf] = OrderedDict()
        self._spares: dict[str, deque[Sandbox]] = {family: deque() for family in families}
        self._booting: dict[str, int] = dict.fromkeys(families, 0)
        self._taken: dict[str, deque[float]] = {family: deque(maxlen=64) for family in families}
        self._background: set[asyncio.Future[Any]] = set()
        self._total = 0
        self._closing = False
        self._ticking = False

    # -- taking and giving back ---------------------------------------------------------------------

    def acquire(self, version: Version, waiter: Waiter) -> None:
        """Calls `waiter.ready` at once when a warm sandbox is idle, else as soon as there is one."""
        shelf = self._shelves.get(version.label)
        if shelf is None:
            shelf = self._shelves[version.label] = _Shelf(version)
        if shelf.idle:
            loaded = shelf.idle.pop()
            shelf.busy += 1
            waiter.ready(loaded)
            return
        shelf.waiting.append((time.monotonic(), waiter))
        self._grow(shelf)
        if shelf.waiting and not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def release(self, loaded: Loaded, ran_ms: float) -> None:
        """The attempt is over and the sandbox sound: the next waiter gets it, or it stays warm."""
        shelf = self._shelves[loaded.version.label]
        shelf.mean_ms = 0.8 * shelf.mean_ms + 0.2 * ran_ms
        loaded.finish()
        if shelf.waiting:
            shelf.waiting.popleft()[1].ready(loaded)
        else:
            shelf.busy -= 1
            shelf.idle.append(loaded)

    def discard(self, loaded: Loaded) -> None:
        """The sandbox cannot be used again."""
        shelf = self._shelves[loaded.version.label]
        shelf.busy -= 1
        self._remove(loaded)
        self._grow(shelf)

    def forget(self, version: Version, waiter: Waiter) -> None:
        """The attempt does not want a sandbox any more (it was cancelled while it waited)."""
        shelf = self._shelves.get(version.label)
        if shelf is not None:
            shelf.waiting = deque(entry for entry in shelf.waiting if entry[1] is not waiter)

    @property
    def total(self) -> int:
        """Loaded sandboxes, busy and idle."""
        return self._total

    def mean_ms(self, label: str) -> float:
        """The moving mean of a version's run time; 0 when it never ran here."""
        shelf = self._shelves.get(label)
        return shelf.mean_ms if shelf is not None else 0.0

    # -- making more --------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticking = False
        for shelf in list(self._shelves.values()):
            self._grow(shelf)
        if any(shelf.waiting for shelf in self._shelves.values()) and not self._closing:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _grow(self, shelf: _Shelf) -> None:
        if not shelf.waiting or self._closing:
            return
        oldest_ms = (time.monotonic() - shelf.waiting[0][0]) * 1000
        want = sandboxes_to_start(len(shelf.waiting), shelf.starting, shelf.busy, shelf.mean_ms, oldest_ms, self._cpus)
        for _ in range(want):
            if self._total >= self._limits.max_sandboxes and not self._evict_one():
                return
            shelf.starting += 1
            self._total += 1
            self._spawn(self._start(shelf))

    async def _start(self, shelf: _Shelf) -> None:
        loaded: Loaded | None = None
        failure: Failure | None = None
        try:
            loaded = await self._load(shelf.version)
        except LoadFailed as error:
            failure = error.failure
        except NanoGridError as error:
            failure = Failure(error_class=ErrorClass.PLATFORM, type=type(error).__name__, message=error.detail)
        except Exception as error:
            log.exception("sandbox_start_failed version=%s", shelf.version.label)
            failure = Failure(
                error_class=ErrorClass.PLATFORM,
                type=type(error).__name__,
                message="the sandbox could not be started",
            )
        finally:
            shelf.starting -= 1
            if loaded is None:
                self._total -= 1
        if loaded is None:
            if shelf.waiting:
                assert failure is not None
                shelf.waiting.popleft()[1].failed(failure)
        elif self._closing:
            await loaded.sandbox.destroy()
        elif shelf.waiting:
            shelf.busy += 1
            shelf.waiting.popleft()[1].ready(loaded)
        else:
            loaded.idle_since = time.monotonic()
            shelf.idle.append(loaded)

    async def _load(self, version: Version) -> Loaded:
        code, env = await asyncio.gather(self._code_of(version), self._env_of(version))
        family = RUNTIMES[version.config.runtime].family
        limits = limits_of(version)
        large = count_files(code, LINK_LIMIT) > LINK_LIMIT
        special = large or limits.network != "none" or limits.tmp_mb != Limits().tmp_mb
        if special:
            sandbox = await self._launcher.launch(RUNTIMES[version.config.runtime], limits, code if large else None)
        else:
            sandbox = await self._take_spare(family, version)
        if not large:
            place_code(code, sandbox.dir / "code")
        loaded = Loaded(sandbox, version)
        try:
            sandbox.limit(limits)
            inside = "/var/task" if sandbox.level != "process" else str(code if large else sandbox.dir / "code")
            await loaded.load(inside, env)
        except BaseException:
            self._spawn(sandbox.destroy())
            raise
        sandbox.exited.add_done_callback(lambda _: self._gone(loaded))
        loaded.cpu_ms = sandbox.read().cpu_ms
        return loaded

    async def _take_spare(self, family: str, version: Version) -> Sandbox:
        self._taken[family].append(time.monotonic())
        spares = self._spares[family]
        try:
            while spares:
                sandbox = spares.popleft()
                if not sandbox.exited.done():
                    return sandbox
            return await self._launcher.launch(RUNTIMES[version.config.runtime], Limits())
        finally:
            # After the cold start that needed it, so that the refill does not compete for the CPU.
            asyncio.get_running_loop().call_later(0.03, self._refill, family)

    def _spare_target(self, family: str) -> int:
        recent = sum(1 for at in self._taken[family] if time.monotonic() - at < 10.0)
        if not self._taken[family]:
            return min(1, self._limits.spares)
        return min(MAX_SPARES, max(self._limits.spares, math.ceil(recent / 4))) if self._limits.spares else 0

    def _refill(self, family: str) -> None:
        if self._closing or self._booting[family]:
            return
        if len(self._spares[family]) < self._spare_target(family):
            self._booting[family] = 1
            self._spawn(self._boot(family))

    async def _boot(self, family: str) -> None:
        runtime = next(r for r in RUNTIMES.values() if r.family == family)
        again_s = 0.0
        try:
            sandbox = await self._launcher.launch(runtime, Limits())
            if self._closing:
                await sandbox.destroy()
            else:
                self._spares[family].append(sandbox)
        except NanoGridError as error:
            log.warning("spare_failed family=%s error=%s", family, error.detail)
            again_s = 5.0
        finally:
            self._booting[family] = 0
        asyncio.get_running_loop().call_later(again_s, self._refill, family)

    # -- letting go ---------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Boots the first spares, then freezes and evicts what is idle; never returns."""
        for family in self._spares:
            self._refill(family)
        while True:
            await asyncio.sleep(SWEEP_S)
            self._sweep(time.monotonic())

    def _sweep(self, now: float) -> None:
        for label, shelf in list(self._shelves.items()):
            for loaded in list(shelf.idle):
                idle_s = now - loaded.idle_since
                if idle_s > shelf.version.config.idle_timeout_s and len(shelf.idle) > shelf.version.config.warm:
                    shelf.idle.remove(loaded)
                    self._remove(loaded)
                elif not loaded.frozen and idle_s > self._limits.freeze_after_s:
                    loaded.sandbox.freeze()
                    loaded.frozen = True
            if not (shelf.idle or shelf.busy or shelf.starting or shelf.waiting):
                del self._shelves[label]
                self._on_cold(label)

    def _evict_one(self) -> bool:
        """Makes room by the least recently used idle sandbox; False when all are busy."""
        idle = [(shelf.idle[0].idle_since, shelf) for shelf in self._shelves.values() if shelf.idle]
        if not idle:
            return False
        shelf = min(idle, key=lambda entry: entry[0])[1]
        self._remove(shelf.idle.pop(0))
        return True

    def _gone(self, loaded: Loaded) -> None:
        """A sandbox ended by itself; if it was idle, nobody else would notice."""
        shelf = self._shelves.get(loaded.version.label)
        if shelf is not None and loaded in shelf.idle:
            shelf.idle.remove(loaded)
            self._remove(loaded)

    def _remove(self, loaded: Loaded) -> None:
        self._total -= 1
        if loaded.frozen:
            loaded.sandbox.thaw()
        self._spawn(loaded.sandbox.destroy())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        future = asyncio.ensure_future(work)
        self._background.add(future)
        future.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Destroys all sandboxes."""
        self._closing = True
        doomed = [loaded.sandbox for shelf in self._shelves.values() for loaded in shelf.idle]
        doomed += [sandbox for spares in self._spares.values() for sandbox in spares]
        await asyncio.gather(*(sandbox.destroy() for sandbox in doomed), return_exceptions=True)
        if self._background:
            await asyncio.wait(set(self._background), timeout=5.0)
