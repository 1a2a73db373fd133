"""Where a worker's work comes from: the controllers' connections, and the queue."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from nanogrid import wire
from nanogrid.errors import NanoGridError, NotFound
from nanogrid.model.function import Version
from nanogrid.model.invocation import ErrorClass, Failure, Message, Reply
from nanogrid.objects.base import ObjectStore
from nanogrid.queues.base import Delivery, Queue
from nanogrid.registry.base import Registry
from nanogrid.settings import Settings
from nanogrid.state.base import StateStore
from nanogrid.worker.attempt import Attempt
from nanogrid.worker.desk import Desk

log = logging.getLogger(__name__)
BATCH = 64
POLL_S = 20.0
RECHECK_S = 2.0
"""A message whose invocation somebody else holds is looked at again after this at the most."""

_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(Message).decode


class DirectIntake:
    """Serves the framed connections of the controllers."""

    def __init__(
        self, desk: Desk, registry: Registry, state: StateStore, settings: Settings, on_drain: asyncio.Event
    ) -> None:
        self._desk = desk
        self._registry = registry
        self._state = state
        self._settings = settings
        self._on_drain = on_drain
        self._peers: set[wire.FrameProtocol] = set()
        self._server: asyncio.Server | None = None
        self._background: set[asyncio.Future[None]] = set()

    async def listen(self, path: Path) -> None:
        """Accepts connections on a unix socket that only this user may open."""
        path.unlink(missing_ok=True)
        self._server = await asyncio.get_running_loop().create_unix_server(self._accept, str(path))
        path.chmod(0o600)

    def _accept(self) -> wire.FrameProtocol:
        def on_frame(kind: int, stream: int, meta: bytes, payload: bytes) -> None:
            self._on_frame(peer, kind, stream, meta, payload)

        peer = wire.FrameProtocol(on_frame, lambda: self._peers.discard(peer))
        self._peers.add(peer)
        return peer

    def _on_frame(self, peer: wire.FrameProtocol, kind: int, stream: int, meta: bytes, payload: bytes) -> None:
        if kind == wire.CALL:
            message = _decode_message(meta)
            if self._desk.room <= 0:
                peer.send(wire.REFUSED, b'{"reason":"room"}', b"", stream)
                return
            function = self._registry.cached(message.function)
            version = function.versions.get(str(message.version)) if function is not None else None
            if version is not None and version.config.concurrency is None:
                self._desk.start_direct(message, version, payload, lambda attempt: _answer(peer, stream, attempt))
            else:
                future = asyncio.ensure_future(self._start_slowly(peer, stream, message, payload))
                self._background.add(future)
                future.add_done_callback(self._background.discard)
        elif kind == wire.CANCEL:
            self._desk.cancel(msgspec.json.decode(meta)["id"])
        elif kind == wire.DRAIN:
            self._on_drain.set()

    async def _start_slowly(self, peer: wire.FrameProtocol, stream: int, message: Message, event: bytes) -> None:
        """The version is not known here yet, or has a concurrency limit that the state store decides."""
        try:
            version = await version_of(self._registry, message)
            if version.config.concurrency is None:
                self._desk.start_direct(message, version, event, lambda attempt: _answer(peer, stream, attempt))
                return
            claim = await self._state.claim(
                message, self._desk.worker, self._settings.lease_s, version.config.concurrency
            )
            if claim.granted:
                self._desk.start_claimed(
                    claim.record, version, event, None, lambda attempt: _answer(peer, stream, attempt)
                )
            else:
                peer.send(wire.REFUSED, b'{"reason":"concurrency"}', b"", stream)
        except NanoGridError as error:
            failure = Failure(error_class=ErrorClass.PLATFORM, type=type(error).__name__, message=error.detail)
            peer.send(wire.OUTCOME, _encode(Reply(failure=failure)), b"", stream)

    def tell_cold(self, label: str) -> None:
        """The last sandbox of a version went: controllers need not prefer this worker for it any more."""
        for peer in self._peers:
            peer.send(wire.NEWS, _encode({"cold": [label]}))

    async def close(self) -> None:
        """Stops listening and closes the connections."""
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers):
            peer.close()


def _answer(peer: wire.FrameProtocol, stream: int, attempt: Attempt) -> None:
    record = attempt.record
    reply = Reply(
        failure=record.failure,
        type=record.result_type,
        attempt=record.attempt,
        cold=record.cold,
        usage=record.usage,
    )
    peer.send(wire.OUTCOME, _encode(reply), attempt.payload, stream)


async def version_of(registry: Registry, message: Message) -> Version:
    """The version that a message names; raises NotFound when it was deleted with its function."""
    function = await registry.get(message.function)
    version = function.versions.get(str(message.version))
    if version is None:
        function = await registry.refresh(message.function)
        version = function.versions.get(str(message.version))
    if version is None:
        raise NotFound(f"function {message.function!r} has no version {message.version} any more")
    return version


class QueueIntake:
    """Takes messages while there is room."""

    def __init__(
        self,
        desk: Desk,
        queue: Queue,
        registry: Registry,
        state: StateStore,
        objects: ObjectStore,
        settings: Settings,
    ) -> None:
        self._desk = desk
        self._queue = queue
        self._registry = registry
        self._state = state
        self._objects = objects
        self._settings = settings
        self._free = asyncio.Event()
        self._claiming = 0
        self._background: set[asyncio.Future[None]] = set()

    def freed(self) -> None:
        """An attempt ended: there may be room now."""
        self._free.set()

    async def serve(self) -> None:
        """Receives and starts; returns when the desk drains."""
        while not self._desk.draining:
            limit = min(BATCH, self._desk.room - self._claiming)
            if limit <= 0:
                self._free.clear()
                await self._free.wait()
                continue
            try:
                deliveries = await self._queue.receive(limit, self._settings.lease_s, POLL_S)
            except NanoGridError as error:
                log.warning("queue_unavailable error=%s", error.detail)
                await asyncio.sleep(1.0)
                continue
            if deliveries:
                self._claiming += len(deliveries)
                future = asyncio.ensure_future(self._start_all(deliveries))
                self._background.add(future)
                future.add_done_callback(self._background.discard)

    async def _start_all(self, deliveries: list[Delivery]) -> None:
        await asyncio.gather(*(self._start_one(delivery) for delivery in deliveries))

    async def _start_one(self, delivery: Delivery) -> None:
        try:
            await self._start(delivery)
        except Exception:
            # The message comes back by itself when its visibility ends.
            log.exception("message_failed invocation=%s", delivery.message.id)
        finally:
            self._claiming -= 1
            self._free.set()

    async def _start(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            version = await version_of(self._registry, message)
        except NotFound as error:
            version = None
            gone = Failure(error_class=ErrorClass.PLATFORM, type="VersionGone", message=error.detail)
        limit = version.config.concurrency if version is not None else None
        claim = await self._state.claim(message, self._desk.worker, self._settings.lease_s, limit)
        record = claim.record
        if not claim.granted:
            if record.done:
                await self._queue.delete([delivery.receipt])
            else:
                await self._queue.extend([delivery.receipt], min(max(claim.wait_s, 0.05), RECHECK_S))
            return
        if version is None:
            record.retries = 0
            await self._desk.fail(record, delivery.receipt, gone)
            return
        if record.attempt > record.retries + 1:
            tries = record.attempt - 1
            lost = (
                f"the worker was lost in each of {tries} attempts"
                if tries > 1
                else "the worker was lost, and retries = 0"
            )
            failure = Failure(error_class=ErrorClass.WORKER_LOST, type="WorkerLost", message=lost)
            await self._desk.fail(record, delivery.receipt, failure)
            return
        event = await self._objects.get(message.event_key) if message.event_key else message.event
        receipt: str | None = delivery.receipt
        if record.retries == 0:
            # At most once: from here on nobody may run it again.
            await self._queue.delete([delivery.receipt])
            receipt = None
        self._desk.start_claimed(record, version, event, receipt, None)
