"""The native bootstrap, driven as a worker does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from nanogrid import wire
from nanogrid.deploy.toolchains import runtimes_dir

Frame = tuple[int, dict, bytes]


class Driver:
    """A booted native sandbox without isolation."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "s"
        self.log_path = folder / "log"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(1)
        self.log = self.log_path.open("wb")
        command = [sys.executable, "-I", "-S", "-B", str(runtimes_dir() / "native" / "bootstrap.py")]
        env = {"NANOGRID_SOCKET": str(self.path), "PATH": os.environ["PATH"], "LEAK": "secret"}
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        listener.settimeout(20)
        self.sock, _ = listener.accept()
        listener.close()
        self.sock.settimeout(30)
        kind, self.hello, _ = self.receive()
        assert kind == wire.HELLO

    def receive(self) -> Frame:
        head = self.exactly(13)
        size, kind, stream, meta_size = wire.HEADER.unpack(head)
        body = self.exactly(size - 9)
        assert stream == 0
        return kind, json.loads(body[:meta_size]), body[meta_size:]

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            got = self.sock.recv(count - len(data))
            if not got:
                raise EOFError("the bootstrap closed its socket")
            data += got
        return data

    def load(self, code: Path, runtime: str, handler: str = "bootstrap", **env: str) -> Frame:
        meta = {
            "function": "f", "version": 3, "runtime": runtime, "handler": handler, "code": str(code),
            "env": env, "memory_mb": 128,
        }  # fmt: skip
        self.sock.sendall(wire.encode(wire.LOAD, json.dumps(meta).encode()))
        return self.receive()

    def send(self, event: bytes, **meta: object) -> None:
        head = {"id": "i-1", "attempt": 1, "deadline_ms": 0, **meta}
        self.sock.sendall(wire.encode(wire.INVOKE, json.dumps(head).encode(), event))

    def call(self, event: bytes | object, **meta: object) -> list[Frame]:
        """All frames of an invocation; the last one is RESULT or ERROR."""
        self.send(event if isinstance(event, bytes) else json.dumps(event).encode(), **meta)
        frames = [self.receive()]
        while frames[-1][0] not in (wire.RESULT, wire.ERROR):
            frames.append(self.receive())
        return frames

    def result(self, event: bytes | object, **meta: object) -> object:
        kind, head, payload = self.call(event, **meta)[-1]
        assert kind == wire.RESULT, head
        return json.loads(payload)

    def error(self, event: bytes | object) -> dict:
        kind, head, _ = self.call(event)[-1]
        assert kind == wire.ERROR
        return head

    def printed(self) -> str:
        return self.log_path.read_text()

    def close(self) -> None:
        self.sock.close()
        self.log.close()
        try:
            self.process.wait(5)
        finally:
            self.process.kill()
            self.process.wait()


def script(folder: Path, text: str) -> Path:
    code = folder / "code"
    code.mkdir()
    (code / "x.sh").write_text(f"#!/bin/sh\n{text}\n")
    (code / "x.sh").chmod(0o755)
    return code
