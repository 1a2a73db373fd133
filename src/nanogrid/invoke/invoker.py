"""Accepts calls and sees them through to an answer.

A synchronous call goes straight to a worker (`links`). Whatever does not fit that path is *promoted*: its
record and its message are stored, then a worker takes it from the queue. Three things promote a call: no
worker has room, the worker was lost, or the caller's wait is over (then it goes on where it runs, and the
queued message only makes sure that it is not lost).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from nanogrid.errors import NanoGridError, NotFound, Throttled
from nanogrid.invoke.calls import Call
from nanogrid.invoke.dead_letters import DeadLetters
from nanogrid.invoke.link import Link, Links, Pending
from nanogrid.model.function import Version
from nanogrid.model.invocation import (
    ErrorClass,
    Failure,
    Invocation,
    Message,
    Reply,
    Status,
    message_of,
    record_of,
)
from nanogrid.model.names import INLINE_LIMIT, event_key, made_at, new_id
from nanogrid.objects.base import ObjectStore
from nanogrid.queues.base import Queue
from nanogrid.registry.base import Registry
from nanogrid.state.base import StateStore

log = logging.getLogger(__name__)
ROOM_WAIT_S = 0.2
"""How long a call waits in the controller for a worker's room before it goes through the queue."""
WAITING_LIMIT = 2000
SWEEP_S = 0.1
YOUNG_S = 0.3
"""A record is written behind the answer of a synchronous call, within this."""
MIN_WAIT_S = 0.1
"""A call is not promoted sooner than this, so that the worker that runs it has recorded its claim."""


class Answer(NamedTuple):
    """What a caller gets: a reply with its payload, or (reply None) the word that it goes on."""

    id: str
    reply: Reply | None
    payload: bytes = b""
    error: NanoGridError | None = None


class Invoker:
    """One per controller process."""

    def __init__(
        self,
        state: StateStore,
        queue: Queue,
        objects: ObjectStore,
        registry: Registry,
        *,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._state = state
        self._queue = queue
        self._objects = objects
        self._registry = registry
        self._clock = clock
        self.draw = draw
        self.links = Links(state, self._room)
        self.dead_letters = DeadLetters(objects, self.again)
        self._waiting: deque[Pending] = deque()
        self._answers: dict[str, Callable[[Answer], None]] = {}
        self._background: set[asyncio.Future[None]] = set()
        # Ids whose callers have their answer while the record may not be written yet: this sweep's and the last ones'.
        self._answered: set[str] = set()
        self._answered_before: set[str] = set()
        self._swept_at = 0.0

    async def serve(self) -> None:
        """Follows the workers and watches deadlines; never returns."""
        follower = asyncio.ensure_future(self.links.follow())
        try:
            while True:
                await asyncio.sleep(SWEEP_S)
                self._sweep()
        finally:
            follower.cancel()

    # -- the hot path -------------------------------------------------------------------------------

    def direct(self, call: Call, version: Version, wait_s: float, answer: Callable[[Answer], None]) -> str:
        """Starts a synchronous call; `answer` is called once, with its outcome or when the wait is over.

        Returns the invocation's id at once. Costs no coroutine as long as a worker has room.
        """
        now = self._clock()
        message = Message(
            id=new_id(now),
            function=version.function,
            version=version.number,
            qualifier=call.qualifier,
            trigger=call.trigger,
            retries=version.config.retries,
            created_at=now,
            event=call.event,
            event_type=call.event_type,
            callback=call.callback,
            idempotency_key=call.idempotency_key,
            replay_of=call.replay_of,
        )
        self._answers[message.id] = answer
        if message.idempotency_key is not None:
            self._spawn(self._joined(message, version, wait_s))
        else:
            self._dispatch(self._pending(message, version, wait_s))
        return message.id

    def _pending(self, message: Message, version: Version, wait_s: float) -> Pending:
        now = time.monotonic()
        return Pending(message, version.label, self._replied, self._unsettled, now, now + max(wait_s, MIN_WAIT_S))

    def _dispatch(self, pending: Pending) -> None:
        link = None if self._waiting else self.links.pick(pending.label)
        if link is not None:
            link.call(pending)
        elif len(self._waiting) < WAITING_LIMIT:
            self._waiting.append(pending)
        else:
            self._spawn(self._through_queue(pending))

    def _room(self) -> None:
        while self._waiting:
            link = self.links.pick(self._waiting[0].label)
            if link is None:
                return
            link.call(self._waiting.popleft())

    def _replied(self, pending: Pending, reply: Reply, payload: bytes) -> None:
        id = pending.message.id
        answer = self._answers.pop(id, None)
        if answer is not None:
            self._answered.add(id)
            answer(Answer(id, reply, payload))

    def _unsettled(self, pending: Pending, reason: str) -> None:
        if pending.message.id not in self._answers:
            return
        if reason == "concurrency":
            self._answer(
                pending.message.id,
                error=Throttled(f"function {pending.message.function!r} is at its concurrency limit: try again later"),
            )
        elif reason == "refused":
            self._waiting.appendleft(pending)
        else:
            self._spawn(self._through_queue(pending, lost=True))

    def _answer(
        self, id: str, reply: Reply | None = None, payload: bytes = b"", error: NanoGridError | None = None
    ) -> None:
        answer = self._answers.pop(id, None)
        if answer is not None:
            answer(Answer(id, reply, payload, error))

    # -- promotion ----------------------------------------------------------------------------------

    def _sweep(self) -> None:
        now = time.monotonic()
        if now - self._swept_at > YOUNG_S:
            self._swept_at = now
            self._answered_before, self._answered = self._answered, set()
        while self._waiting and now - self._waiting[0].since > ROOM_WAIT_S:
            self._spawn(self._through_queue(self._waiting.popleft()))
        for link in self.links:
            for pending in list(link.calls.values()):
                if now >= pending.deadline and pending.message.id in self._answers:
                    pending.deadline = float("inf")
                    self._spawn(self._let_go(pending))

    async def _let_go(self, pending: Pending) -> None:
        """The wait is over: store the message, then tell the caller where to look."""
        await self._store([record_of(pending.message)])
        self._answer(pending.message.id)

    async def _through_queue(self, pending: Pending, lost: bool = False) -> None:
        record = record_of(pending.message)
        if lost and record.retries == 0:
            record.attempt, record.status, record.ended_at = 1, Status.FAILED, self._clock()
            record.failure = Failure(
                error_class=ErrorClass.WORKER_LOST,
                type="WorkerLost",
                message="the worker was lost, and retries = 0",
            )
            await self._state.save(record)
        else:
            await self._store([record])
        await self._finish_by_state(record.id, pending.deadline - time.monotonic())

    async def _finish_by_state(self, id: str, wait_s: float, answer_to: str | None = None) -> None:
        done = await self._state.wait(id, max(wait_s, 0.0))
        if done is None:
            answer = self._answers.pop(answer_to or id, None)
            if answer is not None:
                answer(Answer(id, None))
            return
        payload = await self.result_of(done) if done.failure is None else b""
        answer = self._answers.pop(answer_to or id, None)
        if answer is not None:
            reply = Reply(
                failure=done.failure,
                type=done.result_type,
                attempt=done.attempt,
                cold=done.cold,
                usage=done.usage,
            )
            answer(Answer(id, reply, payload))

    async def _joined(self, message: Message, version: Version, wait_s: float) -> None:
        """A call with an idempotency key: its record comes first, or leads to the call that was there before."""
        stored = await self._state.create(record_of(message))
        if stored.id == message.id:
            self._dispatch(self._pending(message, version, wait_s))
        else:
            await self._finish_by_state(stored.id, wait_s, answer_to=message.id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        future = asyncio.ensure_future(work)
        self._background.add(future)
        future.add_done_callback(self._ended)

    def _ended(self, future: asyncio.Future[None]) -> None:
        self._background.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            log.error("promotion_failed", exc_info=error)

    async def drain(self) -> None:
        """At shutdown: every call that is still out is stored and answered 202."""
        out = [pending for link in self.links for pending in link.calls.values()] + list(self._waiting)
        self._waiting.clear()
        await asyncio.gather(*(self._let_go(p) for p in out if p.message.id in self._answers), return_exceptions=True)
        self.links.close()

    # -- everything else ----------------------------------------------------------------------------

    async def _store(self, records: Sequence[Invocation]) -> list[Invocation]:
        """Makes records and messages durable; returns the stored records."""
        for record in records:
            if len(record.event) > INLINE_LIMIT:
                record.event_key = event_key(record.id)
                await self._objects.put(record.event_key, record.event)
                record.event = b""
        if any(record.idempotency_key for record in records):
            stored = list(await asyncio.gather(*(self._state.create(record) for record in records)))
            fresh = [
                message_of(new)
                for new, asked in zip(stored, records, strict=True)
                if new.id == asked.id and not new.done
            ]
            if fresh:
                await self._queue.send(fresh)
            return stored
        *created, _ = await asyncio.gather(
            *(self._state.create(record) for record in records),
            self._queue.send([message_of(r) for r in records]),
        )
        return created  # type: ignore[return-value]

    async def resolve(self, name: str, qualifier: str) -> Version:
        """The version that a qualifier means now; raises NotFound."""
        if self._registry.cached(name) is None:
            await self._registry.get(name)
        return self._registry.resolve(name, qualifier, self.draw())

    async def invoke(self, call: Call, wait_s: float) -> Invocation:
        """Runs a call and waits; the record is unfinished when the wait was too short.

        Raises:
            NotFound: no such function or qualifier.
            Throttled: the function is at its concurrency limit.
        """
        version = await self.resolve(call.function, call.qualifier)
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        started = self._clock()

        def settle(answer: Answer) -> None:
            if not done.done():
                done.set_result(answer)

        self.direct(call, version, wait_s, settle)
        answer = await done
        if answer.error is not None:
            raise answer.error
        record = Invocation(
            id=answer.id,
            function=version.function,
            version=version.number,
            trigger=call.trigger,
            created_at=started,
        )
        if answer.reply is not None:
            record.status = Status.SUCCESS if answer.reply.failure is None else Status.FAILED
            record.failure, record.usage = answer.reply.failure, answer.reply.usage
            record.result, record.result_type = answer.payload, answer.reply.type
        return record

    async def submit(self, calls: Sequence[Call]) -> list[Invocation]:
        """Accepts calls for later; they are durable when it returns. All or none are accepted."""
        records = []
        for call in calls:
            version = await self.resolve(call.function, call.qualifier)
            now = self._clock()
            records.append(
                Invocation(
                    id=new_id(now),
                    function=version.function,
                    version=version.number,
                    qualifier=call.qualifier,
                    trigger="async" if call.trigger == "sync" else call.trigger,
                    retries=version.config.retries,
                    created_at=now,
                    event=call.event,
                    event_type=call.event_type,
                    idempotency_key=call.idempotency_key,
                    callback=call.callback,
                    replay_of=call.replay_of,
                    schedule_at=call.schedule_at,
                )
            )
        return await self._store(records)

    async def result_of(self, record: Invocation) -> bytes:
        """The result of a finished invocation, from wherever it lies."""
        if record.result_key is not None:
            return await self._objects.get(record.result_key)
        return record.result or b""

    async def find(self, id: str) -> Invocation:
        """The record of an invocation; waits for what its worker writes behind an answer that was given already.

        Raises:
            NotFound: it never was, or its record expired.
        """
        until = self._clock() + YOUNG_S
        while True:
            late = self._clock() > until
            try:
                record = await self._state.get(id)
                if record.done or late or (id not in self._answered and id not in self._answered_before):
                    return record
            except NotFound:
                made = made_at(id)
                if made is None or not 0 <= self._clock() - made < 10 * YOUNG_S or late:
                    raise
            await asyncio.sleep(0.01)

    async def cancel(self, id: str) -> Invocation:
        """Asks for the end of an invocation; the returned record says how far that is."""
        await self.find(id)
        record = await self._state.request_cancel(id)
        link: Link | None = self.links.find(record.worker) if record.worker else None
        if link is not None and not record.done:
            link.cancel(id)
        return record

    async def replay(self, id: str) -> Invocation:
        """Runs a finished or running invocation's event again, as a new invocation of the same qualifier."""
        return await self.again(await self.find(id))

    async def again(self, record: Invocation) -> Invocation:
        """Submits the event of a record again, as a new invocation of the same qualifier."""
        event = await self._objects.get(record.event_key) if record.event_key else record.event
        [again] = await self.submit(
            [
                Call(
                    record.function,
                    record.qualifier,
                    event,
                    record.event_type,
                    trigger="replay",
                    replay_of=record.id,
                )
            ]
        )
        return again
