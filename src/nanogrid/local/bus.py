"""Wake-ups between the processes of one machine: datagrams on unix sockets, one socket a process.

Only a wake-up: a datagram may be lost (a full buffer drops it), and losing all of them must change nothing
but latency.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

LIMIT: Final = 60_000
"""Bytes of one datagram, below the kernel's default buffer."""
MEMBERS_S: Final = 0.5
"""How old the list of the other members may be."""

Listener = Callable[[str, bytes], None]


class Bus:
    """Publish to everyone on this machine who opened the same folder, oneself included."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"{os.getpid()}-{os.urandom(4).hex()}.sock"
        self._socket: socket.socket | None = None
        self._folder_fd = -1
        self._listeners: list[tuple[str, Listener]] = []
        self._members: list[str] = []
        self._members_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Joins."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        # By way of the descriptor, because a socket's path is limited to 107 bytes.
        self._folder_fd = os.open(self._folder, os.O_PATH | os.O_CLOEXEC)
        self._socket.bind(self._address(self._name))
        (self._folder / self._name).chmod(0o600)
        self._loop.add_reader(self._socket.fileno(), self._receive)

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._folder_fd}/{name}"

    def subscribe(self, topic: str, listener: Listener) -> Callable[[], None]:
        """Calls `listener(topic, data)` on the loop for every topic that starts with `topic`; returns what stops it."""
        entry = (topic, listener)
        self._listeners.append(entry)

        def stop() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(entry)

        return stop

    def publish(self, topic: str, data: bytes = b"") -> None:
        """Wakes everyone. Must be called on the loop; never blocks, never raises."""
        self._deliver(topic, data)
        if self._socket is None or self._loop is None:
            return
        now = self._loop.time()
        if now - self._members_at > MEMBERS_S:
            self._members_at = now
            self._members = [
                e.name for e in os.scandir(self._folder) if e.name.endswith(".sock") and e.name != self._name
            ]
        datagram = topic.encode() + b"\n" + data
        for name in list(self._members):
            try:
                self._socket.sendto(datagram, self._address(name))
            except (ConnectionRefusedError, FileNotFoundError):
                # Its process is gone.
                self._members.remove(name)
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()
            except OSError:
                continue

    def _receive(self) -> None:
        assert self._socket is not None
        for _ in range(64):
            try:
                datagram = self._socket.recv(65536)
            except OSError:
                return
            topic, _, data = datagram.partition(b"\n")
            self._deliver(topic.decode("utf-8", "replace"), data)

    def _deliver(self, topic: str, data: bytes) -> None:
        for prefix, listener in list(self._listeners):
            if topic.startswith(prefix):
                listener(topic, data)

    async def close(self) -> None:
        """Leaves; safe to call twice."""
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            os.close(self._folder_fd)
            (self._folder / self._name).unlink(missing_ok=True)
