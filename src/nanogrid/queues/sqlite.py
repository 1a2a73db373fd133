"""The queue on SQLite: SQS semantics as columns."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from nanogrid.local.engine import SqliteEngine
from nanogrid.model.invocation import Message
from nanogrid.queues.base import Delivery, Depth

TOPIC: Final = "queue"
SAFETY_S: Final = 2.0
"""A receiver looks at least so often, should every wake-up be lost."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class SqliteQueue:
    """Durable at commit. Wakes receivers of all processes on this machine."""

    def __init__(self, engine: SqliteEngine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._news = asyncio.Event()
        self._closed = False
        self._stop = engine.bus.subscribe(TOPIC, self._woken)
        self._kept: list[tuple[float, Delivery]] = []
        self._told = False

    def _woken(self, topic: str, data: bytes) -> None:
        self._news.set()

    async def send(self, messages: Sequence[Message], delay_s: float = 0.0) -> None:
        """See the port."""
        visible_at = self._clock() + delay_s
        rows = [(visible_at, _encode(message)) for message in messages]
        await self._engine.write(
            lambda connection: connection.executemany("INSERT INTO messages (visible_at, body) VALUES (?, ?)", rows)
        )
        self._tell()

    def _tell(self) -> None:
        """One wake-up for all that one commit brought."""
        if not self._told:
            self._told = True
            asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        self._told = False
        self._engine.bus.publish(TOPIC)

    async def receive(self, limit: int, visibility_s: float, wait_s: float = 0.0) -> list[Delivery]:
        """See the port. A cancelled receiver keeps what it was given for the next one."""
        until = time.monotonic() + wait_s
        while not self._closed:
            if self._kept:
                # Only while they are still hidden from all others.
                now = self._clock()
                kept = [entry for entry in self._kept if entry[0] > now]
                self._kept = kept[limit:]
                if kept:
                    return [delivery for _, delivery in kept[:limit]]
            self._news.clear()
            due_s = self._due_in()
            if due_s is not None and due_s <= 0:
                taken = await self._take(limit, visibility_s)
                if taken:
                    return taken
                due_s = self._due_in()
            left_s = until - time.monotonic()
            if left_s <= 0:
                return []
            pause_s = min(left_s, SAFETY_S, max(due_s, 0.001) if due_s is not None else SAFETY_S)
            try:
                await asyncio.wait_for(self._news.wait(), pause_s)
            except TimeoutError:
                continue
        return []

    def _due_in(self) -> float | None:
        [(first,)] = self._engine.read("SELECT MIN(visible_at) FROM messages")
        return None if first is None else float(first) - self._clock()

    async def _take(self, limit: int, visibility_s: float) -> list[Delivery]:
        now = self._clock()
        receipt = os.urandom(8).hex()

        def take(connection: sqlite3.Connection) -> list[Delivery]:
            rows = connection.execute(
                "UPDATE messages SET visible_at = ?, receipt = ?, deliveries = deliveries + 1 WHERE n IN"
                " (SELECT n FROM messages WHERE visible_at <= ? ORDER BY visible_at, n LIMIT ?)"
                " RETURNING n, deliveries, body",
                (now + visibility_s, receipt, now, limit),
            ).fetchall()
            return [Delivery(_decode(body), f"{n}:{receipt}", deliveries) for n, deliveries, body in sorted(rows)]

        future = self._engine.write(take)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: self._keep(done, now + visibility_s))
            raise

    def _keep(self, future: asyncio.Future[list[Delivery]], hidden_until: float) -> None:
        if not future.cancelled() and future.exception() is None:
            self._kept += [(hidden_until, delivery) for delivery in future.result()]
            self._news.set()

    async def extend(self, receipts: Sequence[str], visibility_s: float) -> None:
        """See the port."""
        if not receipts:
            return
        visible_at = self._clock() + visibility_s
        rows = [(visible_at, *_split(receipt)) for receipt in receipts]
        await self._engine.write(
            lambda connection: connection.executemany(
                "UPDATE messages SET visible_at = ? WHERE n = ? AND receipt = ?", rows
            )
        )
        if visibility_s < SAFETY_S:
            self._tell()

    async def delete(self, receipts: Sequence[str]) -> None:
        """See the port."""
        rows = [_split(receipt) for receipt in receipts]
        await self._engine.write(
            lambda connection: connection.executemany("DELETE FROM messages WHERE n = ? AND receipt = ?", rows)
        )

    async def depth(self) -> Depth:
        """See the port."""
        now = self._clock()
        [(visible, in_flight)] = self._engine.read(
            # The index alone answers for those that wait, however many.
            "SELECT (SELECT COUNT(*) FROM messages WHERE visible_at <= ?),"
            " (SELECT COUNT(*) FROM messages WHERE visible_at > ? AND deliveries > 0)",
            now,
            now,
        )
        return Depth(visible, in_flight)

    async def close(self) -> None:
        """See the port."""
        self._closed = True
        self._stop()
        self._news.set()


def _split(receipt: str) -> tuple[int, str]:
    number, _, secret = receipt.partition(":")
    return int(number), secret
