"""A small worker's end of the sandbox socket, with which tests drive real bootstraps.

    with Bootstrap([sys.executable, "-I", "-S", "-B", path], tmp_path) as boot:
        boot.load(code=folder, handler="main.handler")
        answer = boot.invoke({"n": 1})
        assert answer.result == 2

The log pipe of a sandbox is a file here; `boot.log()` reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from nanogrid import wire

TIMEOUT_S = 20.0


@dataclass
class Frame:
    """One frame as it came."""

    kind: int
    meta: dict[str, Any]
    payload: bytes


@dataclass
class Answer:
    """All that one invocation sent."""

    last: Frame
    progress: list[Any] = field(default_factory=list)
    partial: list[bytes] = field(default_factory=list)

    @property
    def result(self) -> Any:
        """The decoded result; fails the test on an error."""
        assert self.last.kind == wire.RESULT, self.last
        return json.loads(self.last.payload)

    @property
    def error(self) -> dict[str, Any]:
        """The error; fails the test on a result."""
        assert self.last.kind == wire.ERROR, self.last
        return self.last.meta


class Closed(Exception):
    """The bootstrap closed its connection."""


class Bootstrap:
    """A bootstrap process and the connection it made."""

    def __init__(self, argv: list[str], folder: Path, env: dict[str, str] | None = None) -> None:
        # A path of its own, because that of a socket is limited to 107 bytes.
        self._place = tempfile.TemporaryDirectory(prefix="ng")
        path = os.path.join(self._place.name, "s")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1)
        self._listener.settimeout(TIMEOUT_S)
        self._log = folder / f"log-{os.path.basename(self._place.name)}"
        boot_env = {"NANOGRID_SOCKET": path, "PATH": os.environ["PATH"], "LANG": "C.UTF-8"} | (env or {})
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                argv, env=boot_env, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.sock, _ = self._listener.accept()
        except TimeoutError:
            self.process.kill()
            raise AssertionError(f"the bootstrap did not connect: {self.log()}") from None
        self.sock.settimeout(TIMEOUT_S)
        self.hello = self.receive()
        assert self.hello.kind == wire.HELLO

    def __enter__(self) -> Bootstrap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends connection and process."""
        self.sock.close()
        self._listener.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._place.cleanup()

    def log(self) -> str:
        """What the process printed so far."""
        return self._log.read_text(errors="replace")

    def send(self, kind: int, meta: dict[str, Any], payload: bytes = b"") -> None:
        """Sends one frame."""
        self.sock.sendall(wire.encode(kind, json.dumps(meta).encode(), payload))

    def receive(self) -> Frame:
        """The next frame.

        Raises:
            Closed: the bootstrap closed the connection instead.
        """
        size, kind, stream, meta_size = wire.HEADER.unpack(self._exactly(13))
        assert stream == 0
        body = self._exactly(size - 9)
        return Frame(kind, json.loads(body[:meta_size] or b"{}"), body[meta_size:])

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                got = self.sock.recv(min(count - len(data), 1 << 20))
            except ConnectionResetError:
                got = b""
            if not got:
                raise Closed(f"exit status {self.process.wait(TIMEOUT_S)}; it printed: {self.log()}")
            data += got
        return bytes(data)

    def try_load(self, code: Path, handler: str, runtime: str = "python3", **more: Any) -> Frame:
        """Sends LOAD and returns the answer: LOADED or LOAD_FAILED."""
        meta = {"function": "f", "version": 7, "env": {}, "memory_mb": 128}
        self.send(wire.LOAD, meta | {"runtime": runtime, "handler": handler, "code": str(code)} | more)
        return self.receive()

    def load(self, code: Path, handler: str, runtime: str = "python3", **more: Any) -> Frame:
        """Sends LOAD; anything but LOADED fails the test."""
        answer = self.try_load(code, handler, runtime, **more)
        assert answer.kind == wire.LOADED, answer
        return answer

    def start(self, event: Any = None, raw: bytes | None = None, **meta: Any) -> None:
        """Sends INVOKE and does not wait; `raw` is sent as it is instead of `event` as JSON."""
        payload = json.dumps(event).encode() if raw is None else raw
        self.send(wire.INVOKE, {"id": "i-1", "attempt": 1, "deadline_ms": 0} | meta, payload)

    def finish(self) -> Answer:
        """Waits for the end of the invocation that runs."""
        progress, partial = [], []
        while True:
            frame = self.receive()
            if frame.kind == wire.PROGRESS:
                progress.append(frame.meta["progress"])
            elif frame.kind == wire.PARTIAL:
                partial.append(frame.payload)
            else:
                assert frame.kind in (wire.RESULT, wire.ERROR), frame
                return Answer(frame, progress, partial)

    def invoke(self, event: Any = None, raw: bytes | None = None, **meta: Any) -> Answer:
        """One invocation from start to end."""
        self.start(event, raw, **meta)
        return self.finish()

    def wait_exit(self, timeout_s: float = TIMEOUT_S) -> int:
        """The exit status of the process."""
        return self.process.wait(timeout_s)

    def wait_log(self, text: str, timeout_s: float = TIMEOUT_S) -> None:
        """Waits until `text` was printed."""
        until = time.monotonic() + timeout_s
        while text not in self.log():
            assert time.monotonic() < until, f"{text!r} was not printed, but: {self.log()}"
            time.sleep(0.01)


Start = Callable[..., Bootstrap]


def write(folder: Path, files: dict[str, str]) -> Path:
    """A code folder with these files, whose common indentation is removed."""
    code = folder / "code"
    for name, text in files.items():
        path = code / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return code


@contextlib.contextmanager
def starter(argv: list[str], folder: Path, file: str, default: str, runtime: str) -> Iterator[Start]:
    """Gives `start()`, a booted runtime, and `start(source, handler)`, one with `file` loaded; ends them all."""
    with contextlib.ExitStack() as started:

        def start(source: str | None = None, handler: str = default, **load: Any) -> Bootstrap:
            made = started.enter_context(Bootstrap(argv, folder))
            if source is not None:
                made.load(write(folder, {file: source}), handler, runtime, **load)
            return made

        yield start
