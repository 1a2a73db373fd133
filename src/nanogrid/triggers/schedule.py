"""Cron schedules: one controller at a time, chosen by lease, turns due times into invocations.

Each due time has an idempotency key of its own, so that two controllers, or a restart at the wrong
moment, still make one invocation of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from croniter import croniter

from nanogrid.errors import NanoGridError
from nanogrid.invoke.calls import Call
from nanogrid.invoke.invoker import Invoker
from nanogrid.registry.base import Registry
from nanogrid.state.base import StateStore

log = logging.getLogger(__name__)
TICK_S = 1.0
LEASE_S = 15.0
CATCH_UP_S = 60.0
"""After a pause, due times of the last minute are made up for; older ones are skipped."""


def due_times(expression: str, after: float, until: float) -> list[float]:
    """The moments (epoch seconds, UTC) at which a schedule fires in (after, until]."""
    times = croniter(expression, datetime.fromtimestamp(after, UTC))
    due: list[float] = []
    while (moment := times.get_next(float)) <= until:
        due.append(moment)
    return due


class Scheduler:
    """Serves the schedules of all functions while it holds the lease."""

    def __init__(
        self,
        holder: str,
        registry: Registry,
        state: StateStore,
        invoker: Invoker,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._holder = holder
        self._registry = registry
        self._state = state
        self._invoker = invoker
        self._clock = clock

    async def serve(self) -> None:
        """Ticks once a second; never returns."""
        seen = self._clock()
        while True:
            await asyncio.sleep(TICK_S)
            now = self._clock()
            try:
                if await self._state.acquire("scheduler", self._holder, LEASE_S):
                    await self._fire(max(seen, now - CATCH_UP_S), now)
                seen = now
            except Exception:
                log.exception("schedule_failed")

    async def _fire(self, after: float, until: float) -> None:
        for function in await self._registry.list():
            expression = function.versions[str(function.latest)].config.schedule
            for moment in due_times(expression, after, until) if expression else ():
                event = msgspec.json.encode({"schedule": expression, "time": datetime.fromtimestamp(moment, UTC)})
                call = Call(
                    function.name, "$LATEST", event, trigger="schedule",
                    idempotency_key=f"schedule-{int(moment)}", schedule_at=moment,
                )  # fmt: skip
                try:
                    await self._invoker.submit([call])
                except NanoGridError as error:
                    log.warning("schedule_refused function=%s error=%s", function.name, error.detail)
