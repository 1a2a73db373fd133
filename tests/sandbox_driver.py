"""Drives sandboxes the way the pool does, for the contract and the abuse suites."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nanogrid import wire
from nanogrid.model.runtimes import RUNTIMES
from nanogrid.sandbox.base import Launcher, Limits, Sandbox
from nanogrid.sandbox.bwrap import BwrapLauncher
from nanogrid.sandbox.process import ProcessLauncher

RUNTIMES_DIR = Path(__file__).parent.parent / "runtimes"
PYTHON = [sys.executable, "-I", "-S", "-B"]
INTERPRETERS = {"python3": PYTHON, "native": PYTHON}
ISOLATED = [
    pytest.param("bwrap", marks=pytest.mark.needs("bwrap")),
    pytest.param("docker", marks=pytest.mark.needs("docker")),
]
LEVELS = ["process", *ISOLATED]


def launcher_of(level: str, run_dir: Path) -> Launcher:
    """A launcher of the level; sandboxes live below `run_dir`."""
    if level == "docker":
        from nanogrid.sandbox.docker import DockerLauncher

        image = os.environ.get("NANOGRID_BASE_IMAGE", "debian:bookworm-slim")
        return DockerLauncher(run_dir, RUNTIMES_DIR, image, str(run_dir))
    kind = BwrapLauncher if level == "bwrap" else ProcessLauncher
    node = shutil.which("node")
    return kind(run_dir, RUNTIMES_DIR, INTERPRETERS | ({"nodejs": [node]} if node else {}))


class Driven:
    """A sandbox with code in it, and everything that came out."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.frames: asyncio.Queue[tuple[int, dict[str, Any], bytes]] = asyncio.Queue()
        self.log = b""
        self.log_bytes = 0
        sandbox.on_frame = self._on_frame
        sandbox.on_log = self._on_log

    def _on_frame(self, kind: int, meta: bytes, payload: bytes) -> None:
        self.frames.put_nowait((kind, json.loads(meta), payload))

    def _on_log(self, data: bytes) -> None:
        self.log_bytes += len(data)
        self.log = (self.log + data)[-(1 << 20) :]

    async def frame(self, timeout_s: float = 20.0) -> tuple[int, dict[str, Any], bytes]:
        """The next frame; fails when the sandbox ends instead."""
        getting = asyncio.ensure_future(self.frames.get())
        await asyncio.wait({getting, self.sandbox.exited}, timeout=timeout_s, return_when="FIRST_COMPLETED")
        if not getting.done():
            await asyncio.sleep(0.05)
        if getting.done():
            return getting.result()
        getting.cancel()
        ended = self.sandbox.exited.result() if self.sandbox.exited.done() else f"nothing in {timeout_s} s"
        raise AssertionError(f"no frame: {ended}; log: {self.log[-3000:].decode(errors='replace')}")

    async def load(self, source: str, env: dict[str, str] | None = None, limits: Limits | None = None) -> None:
        """Puts `source` in place as main.py and loads it."""
        code = self.sandbox.dir / "code"
        (code / "main.py").write_text(source)
        (code / "main.py").chmod(0o644)
        self.sandbox.limit(limits or Limits())
        meta = {
            "function": "abuse",
            "version": 1,
            "runtime": "python3",
            "handler": "main.handler",
            "code": str(code) if self.sandbox.level == "process" else "/var/task",
            "env": env or {},
            "memory_mb": (limits or Limits()).memory_mb,
        }
        self.sandbox.send(wire.LOAD, json.dumps(meta).encode())
        kind, meta, _ = await self.frame()
        assert kind == wire.LOADED, meta

    def invoke(self, event: object = None) -> None:
        """Sends an event without waiting."""
        meta = {"id": "i", "attempt": 1, "deadline_ms": 0}
        self.sandbox.send(wire.INVOKE, json.dumps(meta).encode(), json.dumps(event).encode())

    async def call(self, event: object = None, timeout_s: float = 20.0) -> Any:
        """The result of an event; fails on an error of the handler."""
        self.invoke(event)
        kind, meta, payload = await self.frame(timeout_s)
        assert kind == wire.RESULT, (meta, self.log[-2000:])
        return json.loads(payload)

    async def ended(self, timeout_s: float = 10.0) -> str:
        """Why the sandbox ended."""
        return await asyncio.wait_for(asyncio.shield(self.sandbox.exited), timeout_s)


class Grid:
    """One launcher, and sandboxes that go away with the test."""

    def __init__(self, level: str, run_dir: Path) -> None:
        self.level = level
        self.run_dir = run_dir
        self.launcher = launcher_of(level, run_dir)
        self.driven: list[Driven] = []

    async def boot(self, limits: Limits | None = None, runtime: str = "python3") -> Driven:
        """A booted sandbox."""
        driven = Driven(await self.launcher.launch(RUNTIMES[runtime], limits or Limits()))
        self.driven.append(driven)
        return driven

    async def run(self, source: str, limits: Limits | None = None, env: dict[str, str] | None = None) -> Driven:
        """A sandbox with `source` loaded."""
        driven = await self.boot(limits)
        await driven.load(source, env, limits)
        return driven

    async def close(self) -> None:
        """Destroys all."""
        await asyncio.gather(*(driven.sandbox.destroy() for driven in self.driven))
        await self.launcher.close()


async def until(condition: Any, timeout_s: float = 5.0) -> bool:
    """Whether `condition()` becomes true in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True
