"""The stores that the contract suites run against, each opened as a process of the grid would."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanogrid.local.bus import Bus
from nanogrid.local.engine import SqliteEngine
from nanogrid.model.invocation import Invocation, Message
from nanogrid.model.names import new_id
from nanogrid.queues.sqlite import SqliteQueue
from nanogrid.state.sqlite import SqliteState

STORES = ("sqlite",)
"""Adapters of state and queue; another one is added here and in `open_stores`."""


class Clock:
    """Time that a test moves by hand."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Stores:
    """State and queue, as one process has them open."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time, ttl_s: float = 86400.0) -> None:
        self.bus = Bus(folder / "run" / "bus")
        self.engine = SqliteEngine(folder / "grid.db", self.bus)
        self._clock, self._ttl_s = clock, ttl_s

    async def open(self) -> Stores:
        await self.bus.open()
        await self.engine.open()
        self.state = SqliteState(self.engine, ttl_s=self._ttl_s, clock=self._clock)
        self.queue = SqliteQueue(self.engine, self._clock)
        return self

    async def close(self) -> None:
        await self.queue.close()
        await self.state.close()
        await self.engine.close()
        await self.bus.close()


async def open_stores(kind: str, folder: Path, **how: Any) -> Stores:
    assert kind == "sqlite"
    return await Stores(folder, **how).open()


def record(**fields: Any) -> Invocation:
    """A PENDING record."""
    return Invocation(**{"id": new_id(), "function": "f", "version": 1, "created_at": time.time(), **fields})


def message(**fields: Any) -> Message:
    return Message(**{"id": new_id(), "function": "f", "version": 1, "created_at": time.time(), **fields})
