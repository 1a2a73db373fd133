"""Attempts in hand: the common start and the common end of those that came directly and those from the queue."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from nanogrid.model.function import Version
from nanogrid.model.invocation import (
    ErrorClass,
    Event,
    Failure,
    Invocation,
    Message,
    Status,
    message_of,
    record_of,
)
from nanogrid.model.names import INLINE_LIMIT, dead_letter_key, event_key, result_key
from nanogrid.model.retry import retry_delay_s
from nanogrid.objects.base import ObjectStore
from nanogrid.queues.base import Queue
from nanogrid.sandbox.pool import Pool
from nanogrid.settings import Settings
from nanogrid.state.base import StateStore
from nanogrid.worker.attempt import Attempt, End

log = logging.getLogger(__name__)
LINGER_S = 0.015
"""How long the record of a direct call may wait to be written with others."""
EVENT_LINGER_S = 0.02
STORE_RETRY_S = 1.0


class Notifier(Protocol):
    """Tells somebody outside of an end: the callback a caller asked for."""

    def notify(self, record: Invocation, result: bytes) -> None:
        """Returns at once; delivery is tried in the background."""
        ...


class Desk:
    """What one worker has in hand, by invocation id."""

    def __init__(
        self,
        worker: str,
        isolation: str,
        settings: Settings,
        state: StateStore,
        queue: Queue,
        objects: ObjectStore,
        pool: Pool,
        notifier: Notifier,
        on_free: Callable[[], None],
    ) -> None:
        self.worker = worker
        self.attempts: dict[str, Attempt] = {}
        self.draining = False
        self._isolation = isolation
        self._settings = settings
        self._state = state
        self._queue = queue
        self._objects = objects
        self._pool = pool
        self._notifier = notifier
        self._on_free = on_free
        self._events: list[Event] = []
        self._background: set[asyncio.Future[Any]] = set()

    @property
    def room(self) -> int:
        """How many more attempts fit."""
        return 0 if self.draining else self._settings.worker_capacity - len(self.attempts)

    # -- start --------------------------------------------------------------------------------------

    def start_direct(self, message: Message, version: Version, event: bytes, answer: Callable[[Attempt], None]) -> None:
        """A call from a controller, for a version without a concurrency limit: nothing is awaited."""
        record = record_of(message)
        record.attempt = 1
        self._take(record, message, version)
        attempt = self._attempt(record, version, event, self._settle_direct)
        attempt.reply = answer
        self._state.note(record, LINGER_S)
        attempt.begin()

    def start_claimed(
        self,
        record: Invocation,
        version: Version,
        event: bytes,
        receipt: str | None,
        answer: Callable[[Attempt], None] | None,
    ) -> None:
        """An attempt whose lease was granted by the state store."""
        record.started_at = time.time()
        record.isolation = self._isolation
        attempt = self._attempt(record, version, event, self._settle_direct if answer else self._settle_queued)
        attempt.reply = answer
        attempt.receipt = receipt
        attempt.begin()

    def _take(self, record: Invocation, message: Message, version: Version) -> None:
        now = time.time()
        record.status = Status.PROCESSING
        record.worker = self.worker
        record.isolation = self._isolation
        record.started_at = now
        record.lease_until = now + self._settings.lease_s

    def _attempt(
        self, record: Invocation, version: Version, event: bytes, settle: Callable[[Attempt], None]
    ) -> Attempt:
        if len(event) <= INLINE_LIMIT:
            record.event = event
        attempt = Attempt(record, version, event, self._pool, settle, self.publish, self._settings.cancel_grace_s)
        self.attempts[record.id] = attempt
        return attempt

    # -- end ----------------------------------------------------------------------------------------

    def _settle_direct(self, attempt: Attempt) -> None:
        record = attempt.record
        self.attempts.pop(record.id, None)
        # What the function told comes before its end.
        self._flush_events()
        self._on_free()
        if attempt.abandoned:
            return
        record.lease_until = None
        large = len(attempt.payload) > INLINE_LIMIT or len(attempt.event) > INLINE_LIMIT
        if large:
            self._spawn(self._settle_large(attempt))
        else:
            self._state.note(record, LINGER_S)
            attempt.reply(attempt)
            if record.callback:
                self._notifier.notify(record, attempt.payload)

    async def _settle_large(self, attempt: Attempt) -> None:
        await self._put_large(attempt)
        self._state.note(attempt.record, LINGER_S)
        attempt.reply(attempt)
        if attempt.record.callback:
            self._notifier.notify(attempt.record, attempt.payload)

    async def _put_large(self, attempt: Attempt) -> None:
        record = attempt.record
        if len(attempt.payload) > INLINE_LIMIT:
            key = result_key(record.id, record.attempt)
            await self._stored(lambda: self._objects.put(key, attempt.payload))
            record.result_key, record.result = key, None
        if len(attempt.event) > INLINE_LIMIT and record.event_key is None:
            record.event_key = event_key(record.id)
            await self._stored(lambda: self._objects.put(event_key(record.id), attempt.event))

    def _settle_queued(self, attempt: Attempt) -> None:
        self.attempts.pop(attempt.record.id, None)
        self._flush_events()
        self._on_free()
        if not attempt.abandoned:
            self._spawn(self._settle(attempt.record, attempt.payload, attempt.receipt, attempt))

    async def _settle(self, record: Invocation, payload: bytes, receipt: str | None, attempt: Attempt | None) -> None:
        failure = record.failure
        if failure is not None:
            delay_s = retry_delay_s(failure, record.attempt, record.retries, record.trigger, random.random())
            if delay_s is not None:
                await self._retry_later(record, receipt, delay_s)
                return
            if record.trigger not in ("sync", "url") and failure.error_class is not ErrorClass.CANCELLED:
                record.dead_letter = True
        if attempt is not None:
            await self._put_large(attempt)
        record.lease_until = None
        if record.dead_letter:
            await self._stored(lambda: self._objects.put(dead_letter_key(record.id), msgspec.msgpack.encode(record)))
        # Together, so that a store that holds both commits once.
        await self._stored(lambda: self._save_and_delete(record, receipt))
        if record.callback:
            self._notifier.notify(record, payload)

    async def _save_and_delete(self, record: Invocation, receipt: str | None) -> None:
        if receipt is None:
            await self._state.save(record)
        else:
            await asyncio.gather(self._state.save(record), self._queue.delete([receipt]))

    async def _retry_later(self, record: Invocation, receipt: str | None, delay_s: float) -> None:
        record.status = Status.PENDING
        record.not_before = time.time() + delay_s
        record.lease_until = None
        record.ended_at = None
        await self._stored(lambda: self._state.save(record))
        if receipt is not None:
            await self._stored(lambda: self._queue.extend([receipt], delay_s))

    async def fail(self, record: Invocation, receipt: str | None, failure: Failure) -> None:
        """Ends a claimed attempt that never got to a sandbox."""
        record.status, record.failure, record.ended_at = Status.FAILED, failure, time.time()
        await self._settle(record, b"", receipt, None)

    async def _stored(self, write: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Repeats a write until the store takes it: an outcome is never dropped because a store was away."""
        while True:
            try:
                await write()
                return
            except Exception:
                log.exception("store_write_failed worker=%s", self.worker)
                await asyncio.sleep(STORE_RETRY_S)

    # -- while it goes on ---------------------------------------------------------------------------

    def publish(self, event: Event) -> None:
        """Takes a progress or partial event; a few are written together."""
        if not self._events:
            asyncio.get_running_loop().call_later(EVENT_LINGER_S, self._flush_events)
        self._events.append(event)

    def _flush_events(self) -> None:
        events, self._events = self._events, []
        if events:
            self._spawn(self._state.publish(events))

    def cancel(self, id: str) -> None:
        """A cancel that is in the state store already."""
        attempt = self.attempts.get(id)
        if attempt is not None:
            attempt.end(End.CANCEL)

    async def keep_leases(self) -> None:
        """Renews leases and hidden messages at a third of the lease; never returns."""
        lease_s = self._settings.lease_s
        while True:
            await asyncio.sleep(lease_s / 3)
            held = [(id, attempt.record.attempt) for id, attempt in self.attempts.items() if not attempt.done]
            if not held:
                continue
            try:
                receipts = [a.receipt for a in self.attempts.values() if a.receipt is not None]
                told, _ = await asyncio.gather(self._state.renew(held, lease_s), self._queue.extend(receipts, lease_s))
            except Exception:
                log.exception("renew_failed worker=%s", self.worker)
                continue
            for id, what in told.items():
                attempt = self.attempts.get(id)
                if attempt is not None and what == "cancel":
                    attempt.end(End.CANCEL)
                elif attempt is not None:
                    log.warning("lease_lost invocation=%s", id)
                    attempt.abandon()

    # -- shutdown -----------------------------------------------------------------------------------

    async def drain(self, patience_s: float) -> None:
        """Lets attempts finish for `patience_s`, then hands the rest back to the queue."""
        self.draining = True
        until = time.monotonic() + patience_s
        while self.attempts and time.monotonic() < until:  # noqa: ASYNC110 - once in a life
            await asyncio.sleep(0.05)
        for attempt in list(self.attempts.values()):
            await self._hand_back(attempt)
        if self._background:
            await asyncio.wait(set(self._background), timeout=10.0)

    async def _hand_back(self, attempt: Attempt) -> None:
        record = attempt.record
        attempt.abandon()
        record.status, record.not_before, record.lease_until = Status.PENDING, time.time(), None
        # Stopping the worker is not the function's failure: the attempt does not count against its retries.
        record.retries += 1
        await self._stored(lambda: self._state.save(record))
        if attempt.receipt is not None:
            await self._stored(lambda: self._queue.extend([attempt.receipt or ""], 0.0))
        else:
            message = message_of(record)
            if record.event_key is None:
                message = msgspec.structs.replace(message, event=attempt.event)
            await self._stored(lambda: self._queue.send([message]))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        future = asyncio.ensure_future(work)
        self._background.add(future)
        future.add_done_callback(self._ended)

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self._background.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            log.error("settle_failed", exc_info=error)
