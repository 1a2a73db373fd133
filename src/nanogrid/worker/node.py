"""A worker process: desk, intakes, pool and heartbeat, started and stopped together."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from nanogrid.objects.base import ObjectStore
from nanogrid.queues.base import Queue
from nanogrid.registry.base import Registry
from nanogrid.sandbox.base import Launcher
from nanogrid.sandbox.pool import Pool
from nanogrid.settings import Settings
from nanogrid.state.base import StateStore, WorkerInfo
from nanogrid.worker.desk import Desk, Notifier
from nanogrid.worker.intake import DirectIntake, QueueIntake

log = logging.getLogger(__name__)
HEARTBEAT_S = 5.0


class WorkerNode:
    """Serves until `stop` is set, then drains."""

    def __init__(
        self,
        id: str,
        settings: Settings,
        socket: Path,
        state: StateStore,
        queue: Queue,
        objects: ObjectStore,
        registry: Registry,
        launcher: Launcher,
        pool: Pool,
        notifier: Notifier,
    ) -> None:
        self.stop = asyncio.Event()
        self._id = id
        self._settings = settings
        self._socket = socket
        self._state = state
        self._launcher = launcher
        self._pool = pool
        self._started_at = time.time()
        self._desk = Desk(id, launcher.level, settings, state, queue, objects, pool, notifier, self._freed)
        self._direct = DirectIntake(self._desk, registry, state, settings, self.stop)
        self._queued = QueueIntake(self._desk, queue, registry, state, objects, settings)

    def _freed(self) -> None:
        self._queued.freed()

    def cold(self, label: str) -> None:
        """The pool let the last sandbox of a version go."""
        self._direct.tell_cold(label)

    async def serve(self) -> None:
        """Runs until `stop`; then finishes what is in hand, within the drain time."""
        swept = await self._launcher.sweep()
        if swept:
            log.info("sandboxes_swept worker=%s count=%d", self._id, swept)
        await self._direct.listen(self._socket)
        await self._beat()
        duties = [
            asyncio.ensure_future(duty)
            for duty in (
                self._pool.serve(),
                self._desk.keep_leases(),
                self._keep_beating(),
                self._queued.serve(),
            )
        ]
        log.info("worker_ready worker=%s isolation=%s", self._id, self._launcher.level)
        stopping = asyncio.ensure_future(self.stop.wait())
        await asyncio.wait((stopping, *duties), return_when=asyncio.FIRST_COMPLETED)
        self._desk.draining = True
        await self._beat()
        await self._desk.drain(self._settings.drain_s)
        await self._direct.close()
        for duty in duties:
            duty.cancel()
        outcomes = await asyncio.gather(*duties, return_exceptions=True)
        await self._pool.close()
        await self._state.remove_worker(self._id)
        await self._launcher.close()
        self._socket.unlink(missing_ok=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _beat(self) -> None:
        await self._state.heartbeat(
            WorkerInfo(
                id=self._id,
                address=f"unix:{self._socket}",
                capacity=self._settings.worker_capacity,
                isolation=self._launcher.level,
                running=len(self._desk.attempts),
                sandboxes=self._pool.total,
                draining=self._desk.draining,
                started_at=self._started_at,
                seen_at=time.time(),
            )
        )

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await self._beat()
            except Exception:
                log.exception("heartbeat_failed worker=%s", self._id)
