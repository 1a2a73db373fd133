"""Brings back what was left behind: attempts whose lease ended without a message, and records never queued."""

from __future__ import annotations

import asyncio
import logging
import time

from nanogrid.model.invocation import ErrorClass, Failure, Invocation, Status, message_of
from nanogrid.queues.base import Queue
from nanogrid.state.base import StateStore

log = logging.getLogger(__name__)
TICK_S = 5.0
LEASE_S = 15.0
REMEMBER_S = 60.0


class Reaper:
    """One at a time in the grid, by lease. A message too many is harmless: the claim decides."""

    def __init__(self, holder: str, state: StateStore, queue: Queue) -> None:
        self._holder = holder
        self._state = state
        self._queue = queue
        self._sent: dict[str, float] = {}

    async def serve(self) -> None:
        """Looks every few seconds; never returns."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                if await self._state.acquire("reaper", self._holder, LEASE_S):
                    await self.reap()
            except Exception:
                log.exception("reap_failed")

    async def reap(self) -> int:
        """Re-enqueues or ends what is stale; returns how many."""
        now = time.monotonic()
        self._sent = {id: at for id, at in self._sent.items() if now - at < REMEMBER_S}
        stale = [record for record in await self._state.stale() if record.id not in self._sent]
        if not stale:
            return 0
        # While messages wait, a PENDING record most likely has its own among them.
        backlog = (await self._queue.depth()).visible > 0
        lost = [r for r in stale if r.status is Status.PROCESSING and r.attempt > r.retries]
        again = [r for r in stale if r not in lost and not (backlog and r.status is Status.PENDING)]
        for record in lost:
            await self._end(record)
        if again:
            await self._queue.send([message_of(record) for record in again])
            self._sent.update((record.id, now) for record in again)
            log.info("reenqueued count=%d", len(again))
        return len(lost) + len(again)

    async def _end(self, record: Invocation) -> None:
        record.status, record.ended_at, record.lease_until = Status.FAILED, time.time(), None
        record.failure = Failure(
            error_class=ErrorClass.WORKER_LOST,
            type="WorkerLost",
            message=f"the worker was lost in attempt {record.attempt}, and no retry was left",
        )
        await self._state.save(record)
