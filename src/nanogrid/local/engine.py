"""One SQLite file for records and messages, written in groups.

Each process has one writer thread. It takes everything that waits, runs it in one transaction and commits
once: the price of a durable commit is shared by all that came meanwhile. A lock file in front of the
database makes processes take turns in the kernel, without the sleeping back-off of SQLite's own lock.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from nanogrid.errors import InvalidRequest, NanoGridError, StoreUnavailable
from nanogrid.local.bus import Bus

log = logging.getLogger(__name__)
T = TypeVar("T")
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS invocations (
    id TEXT PRIMARY KEY, function TEXT NOT NULL, status INTEGER NOT NULL, attempt INTEGER NOT NULL,
    worker TEXT, lease_until REAL, not_before REAL, touched REAL NOT NULL, created REAL NOT NULL, expires REAL,
    idem TEXT, dead INTEGER, cancel INTEGER, doc BLOB NOT NULL, event BLOB, result BLOB, log TEXT);
CREATE INDEX IF NOT EXISTS invocations_function ON invocations (function, id);
CREATE INDEX IF NOT EXISTS invocations_active ON invocations (function, status) WHERE status < 2;
CREATE INDEX IF NOT EXISTS invocations_failed ON invocations (id) WHERE status = 3;
CREATE UNIQUE INDEX IF NOT EXISTS invocations_idem ON invocations (function, idem) WHERE idem IS NOT NULL;
CREATE TABLE IF NOT EXISTS events (
    n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, at REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS events_id ON events (id);
CREATE TABLE IF NOT EXISTS messages (
    n INTEGER PRIMARY KEY AUTOINCREMENT, visible_at REAL NOT NULL, receipt TEXT, deliveries INTEGER NOT NULL DEFAULT 0,
    body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS messages_visible ON messages (visible_at, n);
CREATE TABLE IF NOT EXISTS workers (id TEXT PRIMARY KEY, seen_at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until REAL NOT NULL);
"""


class Write:
    """One operation of a group: `work(connection)` runs on the writer thread."""

    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future


Outcome = tuple[asyncio.Future[Any], Any, BaseException | None]
"""Of one write: who waits, and the value or the error."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection as every process wants it: WAL, durable at commit, transactions begun by hand."""
    connection = sqlite3.connect(
        path, timeout=30.0, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -32768")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    return connection


class SqliteEngine:
    """The writer thread and the read connection of one process."""

    def __init__(self, path: Path, bus: Bus) -> None:
        self.bus = bus
        self._path = path
        # Never replaced: an append and a popleft are whole, whichever thread has its turn in between.
        self._waiting: deque[Write] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._awake = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Creates what is missing and starts the writer.

        Raises:
            StoreUnavailable: the file cannot be opened.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                # All of it under the lock: SQLite does not wait for who else turns a new file to WAL.
                writer = connect(self._path)
                self._path.chmod(0o600)
                writer.executescript(SCHEMA)
                self._reader = connect(self._path)
                self._reader.execute("PRAGMA query_only = 1")
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"cannot open {self._path}: {error}") from error
        self._thread = threading.Thread(target=self._write_all, args=(writer,), name="sqlite-writer", daemon=True)
        self._thread.start()

    def write(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Runs `work` in the next group; the future is done once it is committed.

        `work` must check before it changes anything: a NanoGridError that it raises is its own answer and
        does not undo the group.
        """
        if self._loop is None or self._closing:
            raise StoreUnavailable("the database is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(Write(work, future))
        if not self._awake:
            self._awake = True
            # At the end of this turn of the loop, so that writes of one turn are one group.
            self._loop.call_soon(self._wake.put, None)
        return future

    def read(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """A small read on the loop: a row by its key costs 20 us, less than a thread's wake-up."""
        if self._reader is None:
            raise StoreUnavailable("the database is closed")
        try:
            return self._reader.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the database does not answer: {error}") from error

    # -- the writer thread --------------------------------------------------------------------------

    def _write_all(self, connection: sqlite3.Connection) -> None:
        while True:
            self._wake.get()
            self._awake = False
            group = []
            while self._waiting:
                group.append(self._waiting.popleft())
            if group:
                self._commit(connection, group)
            if self._closing and not self._waiting:
                connection.close()
                return

    def _commit(self, connection: sqlite3.Connection, group: list[Write]) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            outcomes = self._transact(connection, group)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_resolve, outcomes)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            return

    def _transact(self, connection: sqlite3.Connection, group: list[Write]) -> list[Outcome]:
        """One transaction; when a value in it cannot be stored, the group is halved until only its owner fails."""
        outcomes: list[Outcome] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for write in group:
                try:
                    outcomes.append((write.future, write.work(connection), None))
                except NanoGridError as error:
                    outcomes.append((write.future, None, error))
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            unavailable = isinstance(error, sqlite3.OperationalError)
            if not unavailable and len(group) > 1:
                half = len(group) // 2
                return self._transact(connection, group[:half]) + self._transact(connection, group[half:])
            log.exception("group_failed size=%d", len(group))
            failure = StoreUnavailable(f"the database did not take the write: {error}")
            refusal = failure if unavailable else InvalidRequest(f"the database cannot store this value: {error}")
            outcomes = [(write.future, None, refusal) for write in group]
        return outcomes

    async def close(self) -> None:
        """Writes what waits and ends the thread; safe to call twice."""
        if self._thread is None or self._closing:
            return
        self._closing = True
        self._wake.put(None)
        await asyncio.to_thread(self._thread.join, 10.0)
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        os.close(self._lock)


def _resolve(outcomes: list[Outcome]) -> None:
    for future, value, error in outcomes:
        if future.cancelled():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
            future.exception()
