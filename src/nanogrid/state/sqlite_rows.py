"""Records as rows: the statements of the state store, run on the writer thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from nanogrid.model.invocation import Event, Invocation, Status

STATUS_NUMBER: Final = {Status.PENDING: 0, Status.PROCESSING: 1, Status.SUCCESS: 2, Status.FAILED: 3}

COLUMNS: Final = (
    "id, function, status, attempt, worker, lease_until, not_before, touched, created, expires, idem, dead, cancel,"
    " doc, event, result, log"
)
ROW: Final = f"({', '.join('?' * 17)})"
INSERT: Final = f"INSERT INTO invocations ({COLUMNS}) VALUES "
CREATE: Final = INSERT + ROW + " ON CONFLICT DO NOTHING"
# The fencing rule: a terminal state stays; an older attempt is refused; the same attempt belongs to one worker.
SAVED: Final = (
    " ON CONFLICT (id) DO UPDATE SET status = excluded.status, attempt = excluded.attempt, worker = excluded.worker,"
    " lease_until = excluded.lease_until, not_before = excluded.not_before, touched = excluded.touched,"
    " expires = excluded.expires, dead = excluded.dead, doc = excluded.doc,"
    " event = CASE WHEN LENGTH(excluded.event) > 0 THEN excluded.event ELSE event END,"
    " result = excluded.result, log = excluded.log"
    " WHERE invocations.status < 2 AND (invocations.attempt < excluded.attempt"
    " OR (invocations.attempt = excluded.attempt"
    " AND (invocations.status = 0 OR invocations.worker IS excluded.worker)))"
    # Another record has its idempotency key: the first one stays.
    " ON CONFLICT DO NOTHING RETURNING id"
)
CHUNKS: Final = (64, 16, 4, 1)
"""Rows of one statement: the interpreter lock is given up once a statement, not once a row."""
PRUNED_RECORDS: Final = 500
PRUNED_EVENTS: Final = 1500
"""Of one transaction: others wait for the lock meanwhile."""
SELECT: Final = "SELECT doc, event, result, log, cancel, lease_until FROM invocations"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Invocation).decode
encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(Event).decode


def to_row(record: Invocation, now: float, ttl_s: float) -> tuple[Any, ...]:
    """The row of a record; payloads have columns of their own, so that lists need not read them."""
    event, result, text = record.event, record.result, record.log
    record.event, record.result, record.log = b"", None, ""
    doc = _encode(record)
    record.event, record.result, record.log = event, result, text
    expires = now + ttl_s if record.done else None
    return (
        record.id, record.function, STATUS_NUMBER[record.status], record.attempt, record.worker, record.lease_until,
        record.not_before, now, record.created_at, expires, record.idempotency_key, int(record.dead_letter) or None,
        int(record.cancel_requested) or None, doc, event, result, text or None,
    )  # fmt: skip


def from_row(row: tuple[Any, ...]) -> Invocation:
    """The record of a `SELECT` row."""
    doc, event, result, text, cancel, lease_until = row
    record = _decode(doc)
    record.event, record.result, record.log = event or b"", result, text or ""
    record.cancel_requested = bool(cancel)
    record.lease_until = lease_until
    return record


def find(connection: sqlite3.Connection, id: str) -> Invocation | None:
    """The stored record."""
    row = connection.execute(SELECT + " WHERE id = ?", (id,)).fetchone()
    return None if row is None else from_row(row)


def same_key(connection: sqlite3.Connection, function: str, key: str | None) -> Invocation | None:
    """The record that has this idempotency key already."""
    if key is None:
        return None
    row = connection.execute(SELECT + " WHERE function = ? AND idem = ?", (function, key)).fetchone()
    return None if row is None else from_row(row)


def status_event(record: Invocation, now: float) -> Event:
    """The event that says where a record stands now."""
    data = None
    if record.failure is not None:
        data = {"error_class": str(record.failure.error_class), "message": record.failure.message[:500]}
    return Event(
        id=record.id,
        function=record.function,
        kind="status",
        at=now,
        status=record.status,
        attempt=record.attempt,
        data=data,
    )


def append(connection: sqlite3.Connection, event: Event) -> None:
    """Adds an event to the log."""
    append_all(connection, [event])


def append_all(connection: sqlite3.Connection, events: Sequence[Event]) -> None:
    """Adds events to the log, in their order."""
    sql = "INSERT INTO events (id, at, body) VALUES " + ", ".join(["(?, ?, ?)"] * len(events))
    connection.execute(sql, [value for event in events for value in (event.id, event.at, encode_event(event))])


def save(connection: sqlite3.Connection, row: tuple[Any, ...], event: Event) -> bool:
    """Applies the fencing rule; True when the row was taken, and then the event is in the log."""
    return bool(save_all(connection, [(row, event)]))


def save_all(connection: sqlite3.Connection, batch: Sequence[tuple[tuple[Any, ...], Event]]) -> set[str]:
    """`save` for many different records; returns the ids of those that were taken."""
    taken: set[str] = set()
    at = 0
    for size in CHUNKS:
        while len(batch) - at >= size:
            chunk = batch[at : at + size]
            at += size
            sql = INSERT + ", ".join([ROW] * size) + SAVED
            taken.update(id for (id,) in connection.execute(sql, [value for row, _ in chunk for value in row]))
            events = [event for row, event in chunk if row[0] in taken]
            if events:
                append_all(connection, events)
    return taken


def prune(connection: sqlite3.Connection, oldest: str, now: float, events_before: float) -> bool:
    """Removes a step of what expired: records with an id below `oldest`, and events; True when nothing is left."""
    gone = connection.execute(
        "DELETE FROM invocations WHERE id IN"
        " (SELECT id FROM invocations WHERE id < ? AND expires < ? ORDER BY id LIMIT ?)",
        (oldest, now, PRUNED_RECORDS),
    ).rowcount
    # By number, because events are stored nearly in the order of their time: no look at those that stay.
    old = connection.execute(
        "DELETE FROM events WHERE n < (SELECT MIN(n) FROM events) + ? AND at < ?", (PRUNED_EVENTS, events_before)
    ).rowcount
    return gone < PRUNED_RECORDS and old < PRUNED_EVENTS


def create(connection: sqlite3.Connection, record: Invocation, row: tuple[Any, ...], event: Event) -> Invocation:
    """Stores a new record, or returns the one that has its id or its idempotency key."""
    if connection.execute(CREATE, row).rowcount > 0:
        append(connection, event)
        return record
    there = find(connection, record.id)
    if there is None:
        other = connection.execute(
            SELECT + " WHERE function = ? AND idem = ?", (record.function, record.idempotency_key)
        ).fetchone()
        there = from_row(other)
    return there
