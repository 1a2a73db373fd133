"""A controller's connections to the workers, and the calls that are out on each.

Calls are callbacks, not coroutines: one call costs a dict entry and two frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from nanogrid import wire
from nanogrid.model.invocation import Message, Reply
from nanogrid.state.base import StateStore, WorkerInfo

log = logging.getLogger(__name__)
POLL_S = 1.0


_encode = msgspec.json.Encoder().encode
_decode_reply = msgspec.json.Decoder(Reply).decode


class Pending:
    """One call that is out on a worker, or waits in the controller for room."""

    __slots__ = ("deadline", "label", "link", "message", "on_lost", "on_reply", "since")

    def __init__(
        self,
        message: Message,
        label: str,
        on_reply: Callable[[Pending, Reply, bytes], None],
        on_lost: Callable[[Pending, str], None],
        since: float,
        deadline: float,
    ) -> None:
        self.message = message
        self.label = label
        self.on_reply = on_reply
        self.on_lost = on_lost
        self.since = since
        self.deadline = deadline
        self.link: Link | None = None


class Link:
    """The connection to one worker."""

    def __init__(self, info: WorkerInfo, on_room: Callable[[], None], on_gone: Callable[[Link], None]) -> None:
        self.info = info
        self.calls: dict[int, Pending] = {}
        self.warm: set[str] = set()
        self._next = 0
        self._on_room = on_room
        self._on_gone = on_gone
        self._protocol: wire.FrameProtocol | None = None

    async def connect(self) -> None:
        """Opens the connection; raises OSError."""
        path = self.info.address.removeprefix("unix:")
        _, self._protocol = await asyncio.get_running_loop().create_unix_connection(
            lambda: wire.FrameProtocol(self._on_frame, self._lost), path
        )

    @property
    def room(self) -> int:
        """How many more calls this worker takes now."""
        if self._protocol is None or self.info.draining:
            return 0
        return self.info.capacity - len(self.calls)

    def call(self, pending: Pending) -> None:
        """Sends a call; its `on_reply` or `on_lost` is called once."""
        assert self._protocol is not None
        self._next = stream = (self._next + 1) & 0xFFFFFFFF
        self.calls[stream] = pending
        pending.link = self
        event = pending.message.event
        meta = _encode(msgspec.structs.replace(pending.message, event=b"")) if event else _encode(pending.message)
        self._protocol.send(wire.CALL, meta, event, stream)

    def drain(self) -> None:
        """Asks the worker to finish what it has and take nothing new."""
        if self._protocol is not None:
            self._protocol.send(wire.DRAIN, b"{}")

    def cancel(self, invocation: str) -> None:
        """Tells the worker at once of a cancel that is already in the state store."""
        if self._protocol is not None:
            self._protocol.send(wire.CANCEL, _encode({"id": invocation}))

    def _on_frame(self, kind: int, stream: int, meta: bytes, payload: bytes) -> None:
        if kind == wire.OUTCOME:
            pending = self.calls.pop(stream, None)
            if pending is not None:
                self.warm.add(pending.label)
                pending.on_reply(pending, _decode_reply(meta), payload)
                self._on_room()
        elif kind == wire.REFUSED:
            pending = self.calls.pop(stream, None)
            if pending is not None:
                pending.on_lost(pending, "refused")
        elif kind == wire.NEWS:
            self.warm.difference_update(msgspec.json.decode(meta).get("cold", ()))

    def _lost(self) -> None:
        self._protocol = None
        calls, self.calls = list(self.calls.values()), {}
        self._on_gone(self)
        for pending in calls:
            pending.on_lost(pending, "lost")

    def close(self) -> None:
        """Closes the connection; calls that are out are reported lost."""
        if self._protocol is not None:
            self._protocol.close()


class Candidate(NamedTuple):
    """What placement knows of a worker."""

    warm: bool
    load: int
    room: int


def place(candidates: list[Candidate]) -> int | None:
    """The index of the worker that gets a call, or None when nobody has room.

    A warm worker is preferred until it carries twice the load of an idle one plus four calls: so a quiet
    function stays in one place and a busy one spreads.
    """
    best, best_cost = None, 0.0
    for index, one in enumerate(candidates):
        if one.room > 0:
            cost = one.load if one.warm else 2.0 * one.load + 4.0
            if best is None or cost < best_cost:
                best, best_cost = index, cost
    return best


class Links:
    """All links; keeps them in step with the workers that the state store knows."""

    def __init__(self, state: StateStore, on_room: Callable[[], None]) -> None:
        self._state = state
        self._on_room = on_room
        self._links: dict[str, Link] = {}
        self._list: list[Link] = []

    def __iter__(self) -> Iterator[Link]:
        return iter(self._list)

    def pick(self, label: str) -> Link | None:
        """The link for a call of the version `label`."""
        links = self._list
        if len(links) == 1:
            return links[0] if links[0].room > 0 else None
        chosen = place([Candidate(label in link.warm, len(link.calls), link.room) for link in links])
        return None if chosen is None else links[chosen]

    def find(self, worker: str) -> Link | None:
        """The link to the worker of that id."""
        return self._links.get(worker)

    def gone(self, link: Link) -> None:
        """The connection broke."""
        if self._links.get(link.info.id) is link:
            del self._links[link.info.id]
            self._list = list(self._links.values())

    async def follow(self) -> None:
        """Connects to workers as they appear; never returns."""
        while True:
            try:
                for info in await self._state.workers():
                    await self._meet(info)
                self._on_room()
            except Exception:
                log.exception("workers_unknown")
            await asyncio.sleep(POLL_S if self._list else 0.05)

    async def _meet(self, info: WorkerInfo) -> None:
        link = self._links.get(info.id)
        if link is not None:
            link.info = info
            return
        if not Path(info.address.removeprefix("unix:")).exists():
            return
        link = Link(info, self._on_room, self.gone)
        try:
            await link.connect()
        except OSError as error:
            log.info("worker_unreachable worker=%s error=%s", info.id, error)
            return
        self._links[info.id] = link
        self._list = list(self._links.values())

    def close(self) -> None:
        """Closes all."""
        for link in list(self._list):
            link.close()
