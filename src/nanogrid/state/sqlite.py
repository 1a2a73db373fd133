"""The state store on SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from nanogrid.errors import InvalidRequest, unknown_invocation
from nanogrid.local.engine import SqliteEngine
from nanogrid.model.invocation import ErrorClass, Event, Failure, Invocation, Message, Status, record_of
from nanogrid.model.names import new_id
from nanogrid.state import sqlite_rows as rows
from nanogrid.state.base import Claim, WorkerInfo

log = logging.getLogger(__name__)
TOPIC: Final = "event"
SAFETY_S: Final = 2.0
"""A waiter looks at least so often, should every wake-up be lost."""
GONE_S: Final = 15.0
PRUNE_S: Final = 60.0
PRUNE_STEPS: Final = 60
"""Transactions of one pruning; what is left then waits for the reaper's next round."""
BATCH: Final = 500

_encode_ids = msgspec.json.Encoder().encode
_decode_ids = msgspec.json.Decoder(list[str]).decode
_decode_worker = msgspec.msgpack.Decoder(WorkerInfo).decode


class SqliteState:
    """Durable at commit; writes of one process share their commits (`SqliteEngine`)."""

    def __init__(self, engine: SqliteEngine, *, ttl_s: float = 86400.0, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._ttl_s = ttl_s
        self._clock = clock
        self._notes: dict[str, Invocation] = {}
        self._writing: dict[str, Invocation] = {}
        self._news: list[str] = []
        self._flusher: asyncio.TimerHandle | None = None
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._streams: set[asyncio.Event] = set()
        self._closed = False
        self._pruned_at = clock()
        self._stop = engine.bus.subscribe(TOPIC, self._woken)

    # -- records ------------------------------------------------------------------------------------

    async def create(self, record: Invocation) -> Invocation:
        """See the port."""
        now = self._clock()
        row, event = rows.to_row(record, now, self._ttl_s), rows.status_event(record, now)
        stored = await self._engine.write(lambda connection: rows.create(connection, record, row, event))
        if stored is record:
            self._tell((record.id,))
        return stored

    async def get(self, id: str) -> Invocation:
        """See the port."""
        noted = self._notes.get(id) or self._writing.get(id)
        if noted is not None:
            return noted
        found = self._engine.read(rows.SELECT + " WHERE id = ?", id)
        if not found:
            raise unknown_invocation(id)
        return rows.from_row(found[0])

    async def claim(self, message: Message, worker: str, lease_s: float, concurrency: int | None = None) -> Claim:
        """See the port."""
        now = self._clock()
        claim = await self._engine.write(
            lambda connection: self._claim(connection, message, worker, lease_s, concurrency, now)
        )
        if claim.granted:
            self._tell((message.id,))
        return claim

    def _claim(
        self,
        connection: sqlite3.Connection,
        message: Message,
        worker: str,
        lease_s: float,
        concurrency: int | None,
        now: float,
    ) -> Claim:
        record = rows.find(connection, message.id)
        if record is None:
            other = rows.same_key(connection, message.function, message.idempotency_key)
            if other is not None:
                return Claim(False, other, 0.0 if other.done else 1.0)
            record = record_of(message)
        if record.done:
            return Claim(False, record)
        if record.status is Status.PROCESSING and (record.lease_until or 0.0) > now:
            return Claim(False, record, (record.lease_until or now) - now)
        if (record.not_before or 0.0) > now:
            return Claim(False, record, (record.not_before or now) - now)
        if concurrency is not None:
            [(busy,)] = connection.execute(
                "SELECT COUNT(*) FROM invocations WHERE function = ? AND status = 1 AND lease_until > ?",
                (record.function, now),
            ).fetchall()
            if busy >= concurrency:
                return Claim(False, record, 0.5)
        record.status, record.attempt, record.worker = Status.PROCESSING, record.attempt + 1, worker
        record.lease_until, record.not_before, record.failure = now + lease_s, None, None
        rows.save(connection, rows.to_row(record, now, self._ttl_s), rows.status_event(record, now))
        return Claim(True, record)

    async def renew(self, ids: Sequence[tuple[str, int]], lease_s: float) -> dict[str, str]:
        """See the port."""
        self.flush()
        now = self._clock()

        def renew(connection: sqlite3.Connection) -> dict[str, str]:
            told: dict[str, str] = {}
            for id, attempt in ids:
                found = connection.execute(
                    "UPDATE invocations SET lease_until = ?, touched = ? WHERE id = ? AND attempt = ? AND status = 1"
                    " RETURNING cancel",
                    (now + lease_s, now, id, attempt),
                ).fetchone()
                if found is None:
                    told[id] = "lost"
                elif found[0]:
                    told[id] = "cancel"
            return told

        return await self._engine.write(renew)

    async def save(self, record: Invocation, *, linger_s: float = 0.0) -> bool:
        """See the port."""
        if linger_s > 0.0:
            await asyncio.sleep(linger_s)
        self._notes.pop(record.id, None)
        now = self._clock()
        row, event = rows.to_row(record, now, self._ttl_s), rows.status_event(record, now)
        taken = await self._engine.write(lambda connection: rows.save(connection, row, event))
        if taken:
            self._tell((record.id,))
        return taken

    def note(self, record: Invocation, linger_s: float) -> None:
        """See the port."""
        self._notes[record.id] = record
        if self._flusher is None and not self._closed:
            self._flusher = asyncio.get_running_loop().call_later(linger_s, self.flush)

    def flush(self) -> asyncio.Future[set[str]] | None:
        """Hands the notes to the writer now; returns what is done when they are stored."""
        if self._flusher is not None:
            self._flusher.cancel()
            self._flusher = None
        if not self._notes:
            return None
        notes, self._notes = self._notes, {}
        return self._write_notes(notes)

    def _write_notes(self, notes: dict[str, Invocation]) -> asyncio.Future[set[str]]:
        now = self._clock()
        batch = [(rows.to_row(record, now, self._ttl_s), rows.status_event(record, now)) for record in notes.values()]
        writing = self._engine.write(lambda connection: rows.save_all(connection, batch))
        self._writing.update(notes)
        writing.add_done_callback(lambda done: self._noted(done, notes))
        return writing

    def _noted(self, done: asyncio.Future[set[str]], notes: dict[str, Invocation]) -> None:
        for id, record in notes.items():
            if self._writing.get(id) is record:
                del self._writing[id]
        error = None if done.cancelled() else done.exception()
        if error is None and not done.cancelled():
            self._tell(notes)
        elif isinstance(error, InvalidRequest) and len(notes) > 1:
            # One of them cannot be stored: the others may not suffer for it.
            for id, record in notes.items():
                self._write_notes({id: record})
        elif isinstance(error, InvalidRequest):
            log.error("note_dropped invocation=%s error=%s", next(iter(notes)), error.detail)
        elif not self._closed:
            for id, record in notes.items():
                self._notes.setdefault(id, record)
            if self._flusher is None:
                self._flusher = asyncio.get_running_loop().call_later(1.0, self.flush)

    async def request_cancel(self, id: str) -> Invocation:
        """See the port."""
        self.flush()
        now = self._clock()

        def cancel(connection: sqlite3.Connection) -> tuple[Invocation, bool]:
            record = rows.find(connection, id)
            if record is None:
                raise unknown_invocation(id)
            if record.status is Status.PENDING:
                record.status, record.ended_at = Status.FAILED, now
                record.failure = Failure(
                    error_class=ErrorClass.CANCELLED,
                    type="Cancelled",
                    message="the invocation was cancelled before it started",
                )
                rows.save(connection, rows.to_row(record, now, self._ttl_s), rows.status_event(record, now))
                return record, True
            if record.status is Status.PROCESSING:
                connection.execute("UPDATE invocations SET cancel = 1 WHERE id = ?", (id,))
                record.cancel_requested = True
            return record, False

        record, ended = await self._engine.write(cancel)
        if ended:
            self._tell((id,))
        return record

    async def query(
        self, *, function: str | None = None, status: Status | None = None, since: float | None = None,
        limit: int = 50, before: str | None = None, dead_letter: bool = False,
    ) -> list[Invocation]:  # fmt: skip
        """See the port."""
        if (writing := self.flush()) is not None:
            await asyncio.wait([writing])
        where, values = ["1"], list[Any]()
        for clause, value in (
            ("function = ?", function),
            ("status = ?", None if status is None else rows.STATUS_NUMBER[status]),
            # Ids sort by time, so the primary key serves the time filter as well.
            ("id >= ?", None if since is None else new_id(since, bytes(10))[:13]),
            ("id < ?", before),
            ("dead = ?", 1 if dead_letter else None),
        ):
            if value is not None:
                where.append(clause)
                values.append(value)
        sql = (
            "SELECT doc, NULL, NULL, NULL, cancel, lease_until FROM invocations"
            f" WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        )
        return [rows.from_row(row) for row in self._engine.read(sql, *values, limit)]

    async def stale(self, limit: int = 100) -> list[Invocation]:
        """See the port."""
        now = self._clock()
        await self._prune(now)
        found = self._engine.read(
            rows.SELECT + " WHERE (status = 1 AND lease_until < ?)"
            " OR (status = 0 AND touched < ? AND COALESCE(not_before, 0) < ?) LIMIT ?",
            now - 5.0, now - 10.0, now - 10.0, limit,
        )  # fmt: skip
        return [rows.from_row(row) for row in found]

    async def _prune(self, now: float) -> None:
        if now - self._pruned_at < PRUNE_S:
            return
        oldest = new_id(max(0.0, now - self._ttl_s), bytes(10))

        for _ in range(PRUNE_STEPS):
            if await self._engine.write(lambda connection: rows.prune(connection, oldest, now, now - self._ttl_s)):
                self._pruned_at = now
                return

    # -- events -------------------------------------------------------------------------------------

    async def publish(self, events: Sequence[Event]) -> None:
        """See the port."""

        if events:
            await self._engine.write(lambda connection: rows.append_all(connection, events))
        self._tell({event.id: None for event in events})

    def _tell(self, ids: Iterable[str]) -> None:
        # One wake-up for all that one commit brought: a socket holds few datagrams (net.unix.max_dgram_qlen, often 10).
        if not self._news:
            asyncio.get_running_loop().call_soon(self._publish_news)
        self._news += ids

    def _publish_news(self) -> None:
        news, self._news = self._news, []
        for at in range(0, len(news), BATCH):
            self._engine.bus.publish(TOPIC, _encode_ids(news[at : at + BATCH]))

    def _woken(self, topic: str, data: bytes) -> None:
        for stream in self._streams:
            stream.set()
        if self._waiters:
            for id in _decode_ids(data):
                for waiter in self._waiters.get(id, ()):
                    waiter.set()

    async def events(
        self, *, after: int | None = None, id: str | None = None, function: str | None = None
    ) -> AsyncIterator[Event]:
        """See the port."""
        news = asyncio.Event()
        self._streams.add(news)
        try:
            if after is None:
                [(newest,)] = self._engine.read("SELECT COALESCE(MAX(n), 0) FROM events")
                after = int(newest)
            while not self._closed:
                news.clear()
                sql = "SELECT n, body FROM events WHERE n > ?" + (" AND id = ?" if id else "") + " ORDER BY n LIMIT ?"
                found = self._engine.read(sql, *((after, id, BATCH) if id else (after, BATCH)))
                for n, body in found:
                    after = int(n)
                    event = rows.decode_event(body)
                    if function is None or event.function == function:
                        yield msgspec.structs.replace(event, n=after)
                if len(found) < BATCH:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(news.wait(), SAFETY_S)
        finally:
            self._streams.discard(news)

    async def wait(self, id: str, timeout_s: float | None) -> Invocation | None:
        """See the port."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        news = asyncio.Event()
        self._waiters.setdefault(id, set()).add(news)
        try:
            while True:
                news.clear()
                record = await self.get(id)
                if record.done:
                    return record
                left_s = SAFETY_S if until is None else min(SAFETY_S, until - time.monotonic())
                if left_s <= 0 or self._closed:
                    return None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), left_s)
        finally:
            self._waiters[id].discard(news)
            if not self._waiters[id]:
                del self._waiters[id]

    # -- who is in the grid -------------------------------------------------------------------------

    async def heartbeat(self, worker: WorkerInfo) -> None:
        """See the port."""
        body = msgspec.msgpack.encode(worker)
        values = (worker.id, self._clock(), body)
        await self._engine.write(
            lambda connection: connection.execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?)", values)
        )

    async def remove_worker(self, worker: str) -> None:
        """See the port."""

        def remove(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM workers WHERE id = ?", (worker,))
            # Twice the reaper's patience ago, so that nobody waits for a lease that cannot be renewed.
            connection.execute(
                "UPDATE invocations SET lease_until = ? WHERE status = 1 AND worker = ?",
                (self._clock() - 10.0, worker),
            )

        await self._engine.write(remove)

    async def workers(self) -> list[WorkerInfo]:
        """See the port."""
        found = self._engine.read("SELECT body FROM workers WHERE seen_at > ? ORDER BY id", self._clock() - GONE_S)
        return [_decode_worker(body) for (body,) in found]

    async def acquire(self, name: str, holder: str, lease_s: float) -> bool:
        """See the port."""
        now = self._clock()

        def acquire(connection: sqlite3.Connection) -> bool:
            return (
                connection.execute(
                    "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET holder = excluded.holder,"
                    " until = excluded.until WHERE holder = excluded.holder OR until < ?",
                    (name, holder, now + lease_s, now),
                ).rowcount
                > 0
            )

        return await self._engine.write(acquire)

    async def close(self) -> None:
        """See the port."""
        self.flush()
        self._closed = True
        for stream in self._streams:
            stream.set()
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.set()
        self._stop()
