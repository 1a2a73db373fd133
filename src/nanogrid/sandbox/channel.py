"""What every isolation level shares: the folder of a sandbox, the socket to its bootstrap, its log pipe.

A level subclasses `ChannelSandbox` and adds how processes are started, limited, frozen and killed. In order:

    open()   makes run_dir/sb/<id>/{s,log,code/}; the level starts its processes after that
    hello()  waits for the bootstrap; it fails as soon as the processes end
    end()    the level says that the process tree is gone
    close()  closes the descriptors and removes the folder

The bootstrap's connection is the only one ever accepted: the listener closes and its path goes away with
it, so that user code, which runs later, can neither connect nor pretend to be the bootstrap.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from nanogrid import wire
from nanogrid.errors import SandboxFailed

INSIDE: Final = "/run/nanogrid"
"""Where an isolated sandbox finds the folder with `s` and `log`."""
CODE_INSIDE: Final = "/var/task"
RUNTIME_INSIDE: Final = "/var/runtime"
READ_SIZE: Final = 65536
"""Bytes read from the log at a time: the capacity of a pipe, so a flood costs the worker one buffer."""
DRAIN_LIMIT: Final = 1 << 20
"""Bytes after which `drain_log` stops, because a background process may write faster than it reads."""
BOOT_LOG: Final = 8192
"""Bytes kept of what a sandbox prints before somebody listens."""
REDIRECT: Final = 'log=$1; shift; exec "$@" >"$log" 2>&1 </dev/null'
"""Shell script: sends the output of a command to the FIFO given first. The worker holds both ends open."""


def under_redirect(log: str, argv: list[str]) -> list[str]:
    """The command that starts `argv` with its output on the FIFO `log` (a path as the command sees it)."""
    return ["/bin/sh", "-c", REDIRECT, "sh", log, *argv]


def bootstrap_env(socket_path: str) -> dict[str, str]:
    """The whole environment of a bootstrap. User code gets what the LOAD frame declares instead."""
    return {
        "NANOGRID_SOCKET": socket_path,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
    }


def ignore_frame(kind: int, meta: bytes, payload: bytes) -> None:
    """The listener of a sandbox that has no owner yet."""


class ChannelSandbox:
    """The half of a sandbox that does not depend on its level."""

    level = ""

    def __init__(self, id: str, run_dir: Path) -> None:
        self.id = id
        self.dir = run_dir / "sb" / id
        self.on_frame: Callable[[int, bytes, bytes], None] = ignore_frame
        self.on_log: Callable[[bytes], None] = self._keep_boot_log
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[str] = self._loop.create_future()
        self._hello: asyncio.Future[None] = self._loop.create_future()
        self._protocol: wire.FrameProtocol | None = None
        self._listener: socket.socket | None = None
        self._log = -1
        self._boot_log = b""

    def open(self) -> None:
        """Makes the folder, the listening socket and the log pipe, and starts to listen on both."""
        self.dir.parent.mkdir(parents=True, exist_ok=True)
        self.dir.mkdir(mode=0o711)
        self.dir.chmod(0o711)
        (self.dir / "code").mkdir(mode=0o755)
        (self.dir / "code").chmod(0o755)
        log = self.dir / "log"
        os.mkfifo(log)
        log.chmod(0o622)
        self._log = os.open(log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_reader(self._log, self._read_log)
        self._listener = self._listen()
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        folder = os.open(self.dir, os.O_PATH | os.O_CLOEXEC)
        try:
            # By way of the descriptor, because a socket's path is limited to 107 bytes.
            listener.bind(f"/proc/self/fd/{folder}/s")
        finally:
            os.close(folder)
        (self.dir / "s").chmod(0o666)
        listener.listen(1)
        return listener

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        self._close_listener()
        connection.setblocking(False)
        protocol = wire.FrameProtocol(self._on_frame, self._on_lost)
        self._protocol = protocol
        connecting = self._loop.create_task(self._loop.connect_accepted_socket(lambda: protocol, connection))
        connecting.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            (self.dir / "s").unlink(missing_ok=True)

    async def hello(self, timeout_s: float) -> None:
        """Waits until the bootstrap is ready for LOAD.

        Raises:
            SandboxFailed: the processes ended, or `timeout_s` went by; with the end of what they printed.
        """
        waiting: set[asyncio.Future[Any]] = {self._hello, self.exited}
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._hello.done() and not self.exited.done():
            return
        why = self.exited.result() if self.exited.done() else f"no HELLO within {timeout_s:g} s"
        self.drain_log()
        said = self._boot_log.decode(errors="replace").strip()[-2000:]
        printed = f"; it printed: {said}" if said else ""
        raise SandboxFailed(f"the {self.level} sandbox did not start: {why}{printed}")

    def send(self, kind: int, meta: bytes, payload: bytes = b"") -> None:
        """Sends a frame; one to a sandbox that is gone is dropped, `exited` tells its owner."""
        if self._protocol is not None:
            self._protocol.send(kind, meta, payload)

    def drain_log(self) -> None:
        """Hands over all that is in the log pipe now, at most DRAIN_LIMIT bytes."""
        total = 0
        while total < DRAIN_LIMIT and (got := self._read_log()):
            total += got

    def _read_log(self) -> int:
        if self._log < 0:
            return 0
        try:
            data = os.read(self._log, READ_SIZE)
        except OSError:
            return 0
        if data:
            self.on_log(data)
        return len(data)

    def _keep_boot_log(self, data: bytes) -> None:
        self._boot_log = (self._boot_log + data)[-BOOT_LOG:]

    def _on_frame(self, kind: int, stream: int, meta: bytes, payload: bytes) -> None:
        if self._hello.done():
            self.on_frame(kind, meta, payload)
        elif kind == wire.HELLO:
            self._hello.set_result(None)

    def _on_lost(self) -> None:
        self._protocol = None
        if not self.exited.done():
            self.lost()

    def lost(self) -> None:
        """The bootstrap's connection is gone: the sandbox is of no use, the level should kill it."""

    def end(self, reason: str) -> None:
        """Says that the process tree is gone; the first reason stands. Output in the pipe comes first."""
        if not self.exited.done():
            self.drain_log()
            self.exited.set_result(reason)

    async def close(self) -> None:
        """Closes socket and pipe and removes the folder; safe to call twice."""
        self._close_listener()
        if self._protocol is not None:
            self._protocol.close()
            self._protocol = None
        if self._log >= 0:
            self._loop.remove_reader(self._log)
            os.close(self._log)
            self._log = -1
        await remove_folder(self.dir)


async def remove_folder(folder: Path) -> None:
    """Removes a sandbox's folder; a small one at once, a large one (copied code) in a thread."""
    with contextlib.suppress(OSError):
        for name in ("s", "log"):
            (folder / name).unlink(missing_ok=True)
        (folder / "code").rmdir()
        folder.rmdir()
        return
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
