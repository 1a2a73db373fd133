"""A sandbox with one version's code in it, and the handshake that brings the code in."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Protocol

import msgspec

from nanogrid import wire
from nanogrid.model.function import Version
from nanogrid.model.invocation import ErrorClass, Failure
from nanogrid.sandbox.base import Limits, Sandbox

LINK_LIMIT = 400
"""Files up to which code is hard-linked into a booted sandbox; a larger tree gets a sandbox of its own mount."""


class Execution(Protocol):
    """The owner of what a sandbox does now: one attempt."""

    def on_frame(self, kind: int, meta: bytes, payload: bytes) -> None:
        """A frame of the bootstrap: RESULT, ERROR, PROGRESS or PARTIAL."""
        ...

    def on_log(self, data: bytes) -> None:
        """Output that the function printed."""
        ...

    def on_exit(self, reason: str) -> None:
        """The sandbox is gone; nothing follows."""
        ...


class LoadFailed(Exception):
    """The handler did not load; `failure` says why, as the function's owner should read it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Trouble(msgspec.Struct):
    type: str = "Error"
    message: str = ""
    stack: list[str] = []


def limits_of(version: Version) -> Limits:
    """The limits that a version's config sets."""
    c = version.config
    return Limits(memory_mb=c.memory_mb, cpus=c.cpus, pids=c.pids, tmp_mb=c.tmp_mb, network=c.network)


def count_files(folder: Path, limit: int) -> int:
    """How many files lie below `folder`, counted no further than `limit` + 1."""
    count = 0
    for _, _, files in os.walk(folder):
        count += len(files)
        if count > limit:
            break
    return count


def place_code(code: Path, to: Path) -> None:
    """Makes the tree `code` appear in the folder `to` by hard links, or copies across file systems."""
    for here, folders, files in os.walk(code):
        target = to / Path(here).relative_to(code)
        for name in folders:
            (target / name).mkdir(exist_ok=True)
        for name in files:
            source = Path(here, name)
            try:
                os.link(source, target / name, follow_symlinks=False)
            except OSError:
                shutil.copy2(source, target / name, follow_symlinks=False)


class Loaded:
    """Runs one attempt at a time. `execution` is who owns it now, None while it is idle."""

    __slots__ = (
        "_load",
        "bytes_logged",
        "cold",
        "cpu_ms",
        "early_log",
        "execution",
        "frozen",
        "idle_since",
        "sandbox",
        "version",
    )

    def __init__(self, sandbox: Sandbox, version: Version) -> None:
        self.sandbox = sandbox
        self.version = version
        self.execution: Execution | None = None
        self.idle_since = 0.0
        self.frozen = False
        self.cold = True
        self.cpu_ms = 0.0
        self.bytes_logged = 0
        self.early_log = b""
        self._load: asyncio.Future[None] | None = None
        sandbox.on_frame = self._on_frame
        sandbox.on_log = self._on_log
        sandbox.exited.add_done_callback(self._on_exit)

    async def load(self, code: str, env: dict[str, str]) -> None:
        """Sends the LOAD frame and waits until the handler is ready.

        Raises:
            LoadFailed: the handler does not import, or the sandbox died on it.
        """
        config = self.version.config
        meta = {
            "function": self.version.function,
            "version": self.version.number,
            "runtime": config.runtime,
            "handler": config.handler,
            "code": code,
            "env": env,
            "memory_mb": config.memory_mb,
        }
        self._load = asyncio.get_running_loop().create_future()
        self.sandbox.send(wire.LOAD, msgspec.json.encode(meta))
        await self._load

    def start(self, execution: Execution, meta: bytes, event: bytes) -> None:
        """Begins an attempt; frames and output go to `execution` until `finish`."""
        if self.frozen:
            self.sandbox.thaw()
            self.frozen = False
        self.execution = execution
        self.bytes_logged = 0
        if self.early_log:
            execution.on_log(self.early_log)
            self.early_log = b""
        self.sandbox.send(wire.INVOKE, meta, event)

    def finish(self) -> None:
        """The attempt is over; the sandbox is idle from now."""
        self.execution = None
        self.cold = False
        self.idle_since = time.monotonic()

    def _on_frame(self, kind: int, meta: bytes, payload: bytes) -> None:
        if self.execution is not None:
            self.execution.on_frame(kind, meta, payload)
        elif self._load is not None and not self._load.done():
            if kind == wire.LOADED:
                self._load.set_result(None)
            elif kind == wire.LOAD_FAILED:
                trouble = _trouble(meta)
                self._load.set_exception(
                    LoadFailed(
                        Failure(
                            error_class=ErrorClass.FUNCTION_ERROR,
                            type=trouble.type,
                            message=trouble.message,
                            stack=trouble.stack,
                        )
                    )
                )

    def _on_log(self, data: bytes) -> None:
        if self.execution is not None:
            self.execution.on_log(data)
        else:
            self.early_log = (self.early_log + data)[-65536:]

    def _on_exit(self, exited: asyncio.Future[str]) -> None:
        reason = "destroyed" if exited.cancelled() else exited.result()
        if self._load is not None and not self._load.done():
            said = self.early_log.decode(errors="replace").strip()[-2000:]
            self._load.set_exception(
                LoadFailed(
                    Failure(
                        error_class=crash_class(reason),
                        type="SandboxExited",
                        message=f"the sandbox ended ({reason}) while the handler was loading"
                        + (f": {said}" if said else ""),
                    )
                )
            )
        if self.execution is not None:
            execution, self.execution = self.execution, None
            execution.on_exit(reason)


def crash_class(reason: str) -> ErrorClass:
    """The class of a failure whose sandbox ended for `reason`."""
    return ErrorClass.OUT_OF_MEMORY if reason == "out of memory" else ErrorClass.SANDBOX_CRASH


def _trouble(meta: bytes) -> _Trouble:
    try:
        return msgspec.json.decode(meta, type=_Trouble)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return _Trouble(message="the runtime sent an error that cannot be read")
