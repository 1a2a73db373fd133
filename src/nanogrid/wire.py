"""The frame that all NanoGrid sockets speak: worker to sandbox, and controller to worker.

    u32 size of what follows | u8 kind | u32 stream | u32 size of meta | meta (JSON, UTF-8) | payload

Numbers are big endian. `stream` tells the calls of one connection apart; on a sandbox's channel it is
always 0, because a sandbox runs one invocation at a time. The payload is raw bytes that nothing on the
way decodes. A frame is at most MAX_FRAME bytes; an endpoint closes the connection on a larger one, so
that a hostile peer cannot make the other side buffer without bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from struct import Struct
from typing import Final, cast

HEADER: Final = Struct("!IBII")
MAX_FRAME: Final = 1 << 30
PROTOCOL: Final = 1

# Worker to sandbox.
LOAD: Final = 1
INVOKE: Final = 2
# Sandbox to worker.
HELLO: Final = 16
LOADED: Final = 17
LOAD_FAILED: Final = 18
RESULT: Final = 19
ERROR: Final = 20
PROGRESS: Final = 21
PARTIAL: Final = 22
# Controller to worker, and back.
CALL: Final = 32
CANCEL: Final = 33
DRAIN: Final = 34
OUTCOME: Final = 48
REFUSED: Final = 49
STARTED: Final = 50
NEWS: Final = 51
STATUS: Final = 52

type_name: Final = {
    LOAD: "LOAD",
    INVOKE: "INVOKE",
    HELLO: "HELLO",
    LOADED: "LOADED",
    LOAD_FAILED: "LOAD_FAILED",
    RESULT: "RESULT",
    ERROR: "ERROR",
    PROGRESS: "PROGRESS",
    PARTIAL: "PARTIAL",
}


def encode(kind: int, meta: bytes, payload: bytes = b"", stream: int = 0) -> bytes:
    """One frame as bytes; `meta` is JSON already encoded (or empty)."""
    return b"".join((HEADER.pack(9 + len(meta) + len(payload), kind, stream, len(meta)), meta, payload))


class FrameError(Exception):
    """The peer sent what is not a frame, or one over the limit."""


class FrameReader:
    """Cuts a byte stream into frames: feed it what arrives, it calls `on_frame(kind, stream, meta, payload)`."""

    def __init__(self, on_frame: Callable[[int, int, bytes, bytes], None], limit: int = MAX_FRAME) -> None:
        self._on_frame = on_frame
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes in `data` and calls back for every frame that is now whole.

        Raises:
            FrameError: the sizes in a header contradict each other or exceed the limit.
        """
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < 4 or len(self._buffer) < 4 + int.from_bytes(self._buffer[:4], "big"):
                self._check(self._buffer)
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        at, end = 0, len(data)
        while end - at >= 13:
            size, kind, stream, meta_size = HEADER.unpack_from(data, at)
            if size < 9 or size > self._limit or meta_size > size - 9:
                raise FrameError(f"bad frame header: size {size}, meta {meta_size}")
            stop = at + 4 + size
            if stop > end:
                break
            body = at + 13
            self._on_frame(kind, stream, data[body : body + meta_size], data[body + meta_size : stop])
            at = stop
        if at < end:
            self._buffer += data[at:] if at else data

    def _check(self, head: bytearray) -> None:
        if len(head) >= 4 and int.from_bytes(head[:4], "big") > self._limit:
            raise FrameError("frame over the limit")


class FrameProtocol(asyncio.Protocol):
    """An asyncio protocol of frames whose writes within one loop turn leave in one system call."""

    def __init__(
        self,
        on_frame: Callable[[int, int, bytes, bytes], None],
        on_lost: Callable[[], None] | None = None,
        limit: int = MAX_FRAME,
    ) -> None:
        self._reader = FrameReader(on_frame, limit)
        self._on_lost = on_lost
        self._transport: asyncio.WriteTransport | None = None
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # By cast, because uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except FrameError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._on_lost is not None:
            self._on_lost()

    @property
    def connected(self) -> bool:
        """Whether a frame sent now can still leave."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, kind: int, meta: bytes, payload: bytes = b"", stream: int = 0) -> None:
        """Sends one frame at the end of this turn of the loop, together with its neighbours."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(encode(kind, meta, payload, stream))

    def flush(self) -> None:
        """Writes what is waiting; called by itself once a turn."""
        if self._out:
            out, self._out = self._out, []
            if self.connected:
                assert self._transport is not None
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def close(self) -> None:
        """Closes the connection after what was sent; safe to call twice."""
        if self._transport is not None:
            self.flush()
            self._transport.close()
