"""The frames of `nanogrid.wire` on a blocking socket, as the Python runtime speaks them."""

import os
import select
from _thread import RLock, stack_size, start_new_thread
from struct import Struct

LOAD, INVOKE = 1, 2
HELLO, LOADED, LOAD_FAILED, RESULT, ERROR, PROGRESS, PARTIAL = 16, 17, 18, 19, 20, 21, 22
HEADER = Struct("!IBII")
MAX_FRAME = 1 << 30
BUFFER = 65536
JOIN_LIMIT = 1 << 18
"""Bytes up to which header and payload leave joined; above that a copy costs more than a system call."""


class Channel:
    """Frames on a blocking socket. Any thread may send; only the main thread receives."""

    def __init__(self, sock):
        self._sock = sock
        self._buffer = bytearray(BUFFER)
        self._rest = b""
        self._lock = RLock()
        self._busy = False
        self._late = []
        self.owner = None
        """The context of the running invocation: only on its behalf may PROGRESS and PARTIAL be sent."""

    def receive(self):
        """The next (kind, meta, payload), as views that hold until the next call; None at the end."""
        view, have = memoryview(self._buffer), len(self._rest)
        if have:
            view[:have], self._rest = self._rest, b""
        while have < 13:
            got = self._sock.recv_into(view[have:])
            if not got:
                return None
            have += got
        size, kind, _, meta_size = HEADER.unpack_from(view)
        if size < 9 or size > MAX_FRAME or meta_size > size - 9:
            return None
        end = size + 4
        if end > BUFFER:
            whole = memoryview(bytearray(end))
            whole[:have], view = view[:have], whole
        while have < end:
            got = self._sock.recv_into(view[have:])
            if not got:
                return None
            have += got
        if have > end:
            self._rest = bytes(view[end:have])
        return kind, view[13 : 13 + meta_size], view[13 + meta_size : end]

    def send(self, kind, meta=b"{}", payload=b"", on_behalf_of=None):
        """Sends one frame; with `on_behalf_of` only while that invocation runs. RESULT and ERROR end it."""
        head = HEADER.pack(9 + len(meta) + len(payload), kind, 0, len(meta)) + meta
        with self._lock:
            if on_behalf_of is not None and on_behalf_of is not self.owner:
                return
            if kind in (RESULT, ERROR):
                self.owner = None
            if self._busy:  # A signal handler came in while this thread was sending.
                self._late.append((head, payload))
                return
            self._busy = True
            try:
                self._write(head, payload)
                while self._late:
                    self._write(*self._late.pop(0))
            finally:
                self._busy = False

    def _write(self, head, payload):
        if len(payload) <= JOIN_LIMIT:
            self._sock.sendall(head + payload)
        else:
            self._sock.sendall(head)
            self._sock.sendall(payload)

    def watch(self):
        """Ends the process when the worker is gone, even while a handler is busy."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        stack_size(131072)
        start_new_thread(lambda: (poll.poll(), os._exit(0)), ())
        stack_size(0)

    def forget(self):
        """In a forked child: the connection belongs to the parent."""
        self._sock.close()
        self._lock = RLock()
        self._busy = False
        self.owner = None
