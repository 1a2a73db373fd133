"""The queue port: messages that stay, hidden, until they are deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from nanogrid.model.invocation import Message


class Delivery(NamedTuple):
    """A message in hand. `receipt` is good until its visibility ends or another delivery takes place."""

    message: Message
    receipt: str
    deliveries: int
    """How often it has been delivered, this time included."""


class Depth(NamedTuple):
    """How much is in the queue; `visible` excludes delayed messages."""

    visible: int
    in_flight: int


class Queue(Protocol):
    """At least once, roughly in order. A received message is hidden for `visibility_s`, then comes back."""

    async def send(self, messages: Sequence[Message], delay_s: float = 0.0) -> None:
        """Durable when it returns: a crash of any process afterwards loses nothing."""
        ...

    async def receive(self, limit: int, visibility_s: float, wait_s: float = 0.0) -> list[Delivery]:
        """Up to `limit` messages; waits at most `wait_s` for the first. Two receivers never hold the same
        message at the same time unless its visibility ended in between."""
        ...

    async def extend(self, receipts: Sequence[str], visibility_s: float) -> None:
        """Hides again for `visibility_s` from now (0 makes it visible at once). Stale receipts are ignored."""
        ...

    async def delete(self, receipts: Sequence[str]) -> None:
        """Removes for good. Stale receipts are ignored."""
        ...

    async def depth(self) -> Depth:
        """How many messages wait and how many are in somebody's hands."""
        ...

    async def close(self) -> None:
        """Ends waiting receivers (they return an empty list) and frees the connection."""
        ...
