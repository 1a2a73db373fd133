"""An HTTP/1.1 client on a bare socket: keep-alive, one request at a time, cheap enough not to be what is measured."""

from __future__ import annotations

import json
import socket
from typing import Any, NamedTuple

RECEIVE = 1 << 18


class BenchError(Exception):
    """Something answered other than it should; the text says what and how."""


class Reply(NamedTuple):
    """An answer; `head` keeps the status line and the headers as they came."""

    status: int
    head: bytes
    body: bytes

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """One header, or None."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower().encode():
                return value.strip().decode("latin-1")
        return None


class Reader:
    """Puts one reply after the other together from what arrives. Knows content-length and chunked bodies."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Reply | None:
        """The reply, once it is whole.

        Raises:
            BenchError: this is not HTTP/1.1, or the end of the body is not marked.
        """
        buffer = self._buffer + data if self._buffer else data
        self._buffer = buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = buffer[:end]
        if not head.startswith(b"HTTP/1.1 "):
            raise BenchError(f"not an HTTP/1.1 answer: {buffer[:80]!r}")
        status = int(head[9:12])
        rest = buffer[end + 4 :]
        low = head.lower()
        at = low.find(b"\r\ncontent-length:")
        if at >= 0:
            size = int(low[at + 17 :].split(b"\r\n", 1)[0])
            if len(rest) < size:
                return None
            self._buffer = rest[size:]
            return Reply(status, head, rest[:size])
        if b"\r\ntransfer-encoding: chunked" in low:
            whole = _dechunk(rest)
            if whole is None:
                return None
            body, self._buffer = whole
            return Reply(status, head, body)
        if status in (204, 304):
            self._buffer = rest
            return Reply(status, head, b"")
        raise BenchError(f"an answer without content-length: {head[:200]!r}")


def _dechunk(data: bytes) -> tuple[bytes, bytes] | None:
    """Body and what follows it, or None when the last chunk is not there yet."""
    body: list[bytes] = []
    at = 0
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line].split(b";")[0], 16)
        at = line + 2 + size + 2
        if len(data) < at:
            return None
        if size == 0:
            return b"".join(body), data[at:]
        body.append(data[line + 2 : at - 2])
    return None


def request(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def connect(host: str, port: int, timeout_s: float = 60.0) -> socket.socket:
    """A socket without delay of small writes."""
    opened = socket.create_connection((host, port), timeout=timeout_s)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


class Connection:
    """One keep-alive connection that waits for its answers."""

    def __init__(self, host: str, port: int, timeout_s: float = 60.0) -> None:
        self._socket = connect(host, port, timeout_s)
        self._reader = Reader()

    def call(self, raw: bytes) -> Reply:
        """Sends a request and waits for the answer.

        Raises:
            BenchError: the connection was closed, or what came is no HTTP.
            TimeoutError: nothing came in time.
        """
        self._socket.sendall(raw)
        while True:
            data = self._socket.recv(RECEIVE)
            if not data:
                raise BenchError(f"the connection was closed without an answer to {raw[:60]!r}")
            reply = self._reader.feed(data)
            if reply is not None:
                return reply

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()
