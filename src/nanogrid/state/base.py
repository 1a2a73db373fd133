"""The state port: records of invocations, leases, live events, and who is in the grid.

Every write on behalf of an attempt carries the attempt's number, which is its fencing token: a write
with another number than the stored one is refused. The first terminal state wins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from nanogrid.model.invocation import Event, Invocation, Message, Status


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker says of itself with every heartbeat. Times are seconds since the epoch."""

    id: str
    address: str
    """Where controllers connect: `unix:/path`, later `tls:host:port`."""
    capacity: int
    isolation: str
    zone: str = "local"
    running: int = 0
    sandboxes: int = 0
    draining: bool = False
    started_at: float = 0.0
    seen_at: float = 0.0


class Claim(NamedTuple):
    """The answer to a claim. `record` is the stored record after it (a claimed one is PROCESSING)."""

    granted: bool
    record: Invocation
    wait_s: float = 0.0
    """When refused because another attempt holds the lease, a retry is not due yet or the function is at
    its concurrency: ask again after so many seconds."""


class StateStore(Protocol):
    """Records are kept 24 h after their terminal state. Raises StoreUnavailable when it cannot answer."""

    async def create(self, record: Invocation) -> Invocation:
        """Stores a PENDING record, durably, unless its id is there already or another record has the same
        function and idempotency key; returns the record that is stored then (the caller's or the other)."""
        ...

    async def get(self, id: str) -> Invocation:
        """The record; raises NotFound."""
        ...

    async def claim(self, message: Message, worker: str, lease_s: float, concurrency: int | None = None) -> Claim:
        """Takes the next attempt by compare-and-set: granted when the record is PENDING and due, or is
        PROCESSING with an expired lease; makes the record from the message if there is none. With
        `concurrency` also refused while so many of the function's attempts hold a lease."""
        ...

    async def renew(self, ids: Sequence[tuple[str, int]], lease_s: float) -> dict[str, str]:
        """Extends leases of (id, attempt). Returns only those that need attention: `lost` (another attempt
        or a terminal state took over) or `cancel` (the lease is renewed, but a cancel was asked)."""
        ...

    async def save(self, record: Invocation, *, linger_s: float = 0.0) -> bool:
        """Writes the state of an attempt: PROCESSING (a directly dispatched call that began), PENDING (waits
        for a retry, `not_before` set) or terminal. Refused, with False, when the stored attempt is newer or
        the stored state is terminal. With `linger_s` it may be held back so long to be batched, and a
        later save of the same record replaces it. Publishes a status event after storing."""
        ...

    def note(self, record: Invocation, linger_s: float) -> None:
        """`save` for the hot path: returns at once, is written within `linger_s` (and again until the store
        takes it). The record is read when it is written, so a later change of the same object needs no
        second write. A refusal is dropped: the state that won stays."""
        ...

    async def request_cancel(self, id: str) -> Invocation:
        """PENDING becomes FAILED (CANCELLED) at once; PROCESSING is marked, and its worker told by event
        and by `renew`; a terminal one stays. Returns the record afterwards. Raises NotFound."""
        ...

    async def query(
        self,
        *,
        function: str | None = None,
        status: Status | None = None,
        since: float | None = None,
        limit: int = 50,
        before: str | None = None,
        dead_letter: bool = False,
    ) -> list[Invocation]:
        """Records, newest first (without event, result and log), ids smaller than `before`."""
        ...

    async def stale(self, limit: int = 100) -> list[Invocation]:
        """For the reaper: PROCESSING with a lease that ended more than 5 s ago, and PENDING, due, and
        untouched for more than 10 s."""
        ...

    async def publish(self, events: Sequence[Event]) -> None:
        """Appends progress and partial events to the log and wakes subscribers."""
        ...

    def events(
        self, *, after: int | None = None, id: str | None = None, function: str | None = None
    ) -> AsyncIterator[Event]:
        """Events stored after number `after` (None: from now on; 0: from the start), then live ones,
        without end. `id` or `function` filter."""
        ...

    async def wait(self, id: str, timeout_s: float | None) -> Invocation | None:
        """The record once it is terminal (subscribes first, then reads, then waits), None after `timeout_s`.
        Raises NotFound."""
        ...

    async def heartbeat(self, worker: WorkerInfo) -> None:
        """Says that the worker lives; it counts as gone 15 s after its last heartbeat."""
        ...

    async def remove_worker(self, worker: str) -> None:
        """The worker is known to be dead or drained: forgets it, and ends its leases now."""
        ...

    async def workers(self) -> list[WorkerInfo]:
        """Workers that were seen within 15 s."""
        ...

    async def acquire(self, name: str, holder: str, lease_s: float) -> bool:
        """A named lease for duties of which the grid needs one at a time (scheduler, reaper): True when
        `holder` has it for `lease_s` from now."""
        ...

    async def close(self) -> None:
        """Writes what lingers, ends event streams, frees the store."""
        ...
