"""One attempt, start to end: from the grant to the outcome, whoever asked for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

import msgspec

from nanogrid import wire
from nanogrid.model.function import Version
from nanogrid.model.invocation import ErrorClass, Event, Failure, Invocation, Status, Usage
from nanogrid.model.names import INLINE_LIMIT
from nanogrid.sandbox.loaded import Loaded, crash_class
from nanogrid.sandbox.pool import Pool

LOG_LIMIT: Final = 1 << 20
PARTIAL_LIMIT: Final = 64 * 1024


class End(Enum):
    """Why an attempt is being ended from outside."""

    CANCEL = ErrorClass.CANCELLED
    TIMEOUT = ErrorClass.TIMEOUT


class _InvokeMeta(msgspec.Struct, omit_defaults=True):
    id: str
    attempt: int
    deadline_ms: int = 0
    type: str = "application/json"


class _ResultMeta(msgspec.Struct):
    type: str = "application/json"


class _ErrorMeta(msgspec.Struct, rename={"error_class": "class"}):
    type: str = "Error"
    message: str = ""
    stack: list[str] = []
    error_class: str = ""


_encode = msgspec.json.Encoder().encode
_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_decode_error = msgspec.json.Decoder(_ErrorMeta).decode
_decode_result = msgspec.json.Decoder(_ResultMeta).decode


def check_result(payload: bytes, kind: str, limit_mb: int) -> Failure | None:
    """Why a result cannot be kept, or None when it can."""
    if len(payload) > limit_mb << 20:
        message = f"the result has {len(payload) >> 20} MiB, the limit (output_mb) is {limit_mb} MiB"
        return Failure(error_class=ErrorClass.RESULT_INVALID, type="ResultTooLarge", message=message)
    if kind == "application/json":
        try:
            _check_json(payload)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            message = f"the result is not JSON: {error}"
            return Failure(error_class=ErrorClass.RESULT_INVALID, type="ResultNotJson", message=message)
    return None


class Attempt:
    """Owns its sandbox from `ready` until it calls `on_done(self)`, exactly once.

    Afterwards `record` is in its terminal state and, for a SUCCESS, `payload` holds the result.
    """

    __slots__ = (
        "_deadline",
        "_ending",
        "_grace_s",
        "_killer",
        "_loaded",
        "_log",
        "_log_size",
        "_on_done",
        "_pool",
        "_publish",
        "_started",
        "abandoned",
        "done",
        "event",
        "payload",
        "receipt",
        "record",
        "reply",
        "version",
    )  # fmt: skip

    def __init__(
        self,
        record: Invocation,
        version: Version,
        event: bytes,
        pool: Pool,
        on_done: Callable[[Attempt], None],
        publish: Callable[[Event], None],
        grace_s: float,
    ) -> None:
        self.record = record
        self.version = version
        self.event = event
        self.payload = b""
        self.reply: Any = None
        self.receipt: str | None = None
        self.done = False
        self.abandoned = False
        self._pool = pool
        self._on_done = on_done
        self._publish = publish
        self._grace_s = grace_s
        self._loaded: Loaded | None = None
        self._log: list[bytes] = []
        self._log_size = 0
        self._started = time.monotonic()
        self._deadline: asyncio.TimerHandle | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._ending: End | None = None

    def begin(self) -> None:
        """Asks the pool for a sandbox."""
        self._pool.acquire(self.version, self)

    # -- what the pool says -------------------------------------------------------------------------

    def ready(self, loaded: Loaded) -> None:
        """A sandbox is there: the event goes in."""
        now = time.monotonic()
        record = self.record
        record.cold = loaded.cold
        waited_ms = (now - self._started) * 1000
        record.usage = Usage(
            queue_ms=max(0.0, ((record.started_at or 0.0) - record.created_at) * 1000),
            cold_start_ms=waited_ms if loaded.cold else 0.0,
        )
        self._started = now
        self._loaded = loaded
        deadline_ms = 0
        timeout_s = self.version.config.timeout_s
        if timeout_s is not None:
            deadline_ms = int((time.time() + timeout_s) * 1000)
            self._deadline = asyncio.get_running_loop().call_later(timeout_s, self.end, End.TIMEOUT)
        meta = _InvokeMeta(id=record.id, attempt=record.attempt, deadline_ms=deadline_ms, type=record.event_type)
        loaded.start(self, _encode(meta), self.event)

    def failed(self, failure: Failure) -> None:
        """No sandbox could be made, or the handler does not load."""
        self._finish(failure, b"", "application/json", sound=False)

    # -- what the sandbox says ----------------------------------------------------------------------

    def on_frame(self, kind: int, meta: bytes, payload: bytes) -> None:
        """A frame of the bootstrap."""
        if kind == wire.RESULT:
            try:
                result_type = _decode_result(meta).type if len(meta) > 2 else "application/json"
            except (msgspec.MsgspecError, RecursionError):
                result_type = "application/octet-stream"
            failure = check_result(payload, result_type, self.version.config.output_mb)
            self._finish(failure, payload if failure is None else b"", result_type, sound=True)
        elif kind == wire.ERROR:
            self._finish(_failure_of(meta), b"", "application/json", sound=True)
        elif kind == wire.PROGRESS:
            self._tell("progress", meta, payload)
        elif kind == wire.PARTIAL:
            self._tell("partial", meta, payload)

    def _tell(self, kind: str, meta: bytes, payload: bytes) -> None:
        data: object
        if kind == "partial":
            data = payload[:PARTIAL_LIMIT].decode("utf-8", "replace")
        else:
            try:
                data = msgspec.json.decode(meta).get("progress")
            except (msgspec.MsgspecError, RecursionError, AttributeError):
                return
        record = self.record
        self._publish(
            Event(
                id=record.id,
                function=record.function,
                kind=kind,
                at=time.time(),
                attempt=record.attempt,
                data=data,
            )
        )

    def on_log(self, data: bytes) -> None:
        """Output of the function: the first MiB is kept."""
        room = LOG_LIMIT - self._log_size
        if room <= 0:
            self.record.log_truncated = True
            return
        if len(data) > room:
            data = data[:room]
            self.record.log_truncated = True
        self._log.append(data)
        self._log_size += len(data)

    def log_so_far(self) -> str:
        """The output until now, for a reader who follows."""
        return b"".join(self._log).decode("utf-8", "replace")

    def on_exit(self, reason: str) -> None:
        """The sandbox ended under the attempt."""
        if self._ending is None:
            failure = Failure(
                error_class=crash_class(reason), type="SandboxExited", message=f"the sandbox ended: {reason}"
            )
            if failure.error_class is ErrorClass.OUT_OF_MEMORY:
                limit = self.version.config.memory_mb
                message = f"the function used more than its {limit} MiB of memory: raise memory_mb or use less"
                failure = Failure(error_class=ErrorClass.OUT_OF_MEMORY, type="OutOfMemory", message=message)
        else:
            failure = _ended(self._ending, self.version)
        self._finish(failure, b"", "application/json", sound=False)

    # -- what others want ---------------------------------------------------------------------------

    def end(self, why: End) -> None:
        """SIGTERM, then after the grace SIGKILL; an attempt that has no sandbox yet ends at once."""
        if self.done or self._ending is not None:
            return
        self._ending = why
        if self._loaded is None:
            self._pool.forget(self.version, self)
            self._finish(_ended(why, self.version), b"", "application/json", sound=False)
            return
        self._loaded.sandbox.terminate()
        self._killer = asyncio.get_running_loop().call_later(self._grace_s, self.kill)

    def kill(self) -> None:
        """SIGKILL to all of the sandbox; the attempt ends when it is gone."""
        if self._loaded is not None and not self.done:
            self._spawn_destroy(self._loaded)

    def abandon(self) -> None:
        """The attempt is somebody else's now: kill the sandbox and record nothing."""
        self.abandoned = True
        if self._loaded is None:
            self._pool.forget(self.version, self)
            self._finish(_ended(End.CANCEL, self.version), b"", "application/json", sound=False)
        else:
            self.kill()

    def _spawn_destroy(self, loaded: Loaded) -> None:
        asyncio.ensure_future(loaded.sandbox.destroy())  # noqa: RUF006 - destroy never raises, and exited tells its end

    # -- the end ------------------------------------------------------------------------------------

    def _finish(self, failure: Failure | None, payload: bytes, result_type: str, *, sound: bool) -> None:
        if self.done:
            return
        self.done = True
        for timer in (self._deadline, self._killer):
            if timer is not None:
                timer.cancel()
        record, loaded, run_ms = self.record, self._loaded, 0.0
        if self._ending is not None:
            failure, sound = _ended(self._ending, self.version), False
        if loaded is not None:
            run_ms = (time.monotonic() - self._started) * 1000
            loaded.sandbox.drain_log()
            self._measure(loaded, run_ms)
        record.ended_at = max(time.time(), record.started_at or 0.0)
        record.status = Status.SUCCESS if failure is None else Status.FAILED
        record.failure = failure
        record.result_type = result_type
        record.log = self.log_so_far() if self._log else ""
        self.payload = payload
        if len(payload) <= INLINE_LIMIT:
            record.result = payload if failure is None else None
        self._on_done(self)
        if loaded is not None:
            if sound:
                self._pool.release(loaded, run_ms)
            else:
                self._pool.discard(loaded)

    def _measure(self, loaded: Loaded, run_ms: float) -> None:
        reading = loaded.sandbox.read()
        loaded.sandbox.reset_peak()
        usage = self.record.usage or Usage()
        self.record.usage = Usage(
            queue_ms=round(usage.queue_ms, 3),
            cold_start_ms=round(usage.cold_start_ms, 3),
            run_ms=round(run_ms, 3),
            cpu_ms=round(max(0.0, reading.cpu_ms - loaded.cpu_ms), 3),
            memory_peak_mb=round(reading.memory_peak_mb, 1),
        )
        loaded.cpu_ms = reading.cpu_ms


def _failure_of(meta: bytes) -> Failure:
    try:
        told = _decode_error(meta)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return Failure(
            error_class=ErrorClass.FUNCTION_ERROR,
            type="Error",
            message="the runtime sent an error that cannot be read",
        )
    kind = ErrorClass.RESULT_INVALID if told.error_class == "RESULT_INVALID" else ErrorClass.FUNCTION_ERROR
    return Failure(error_class=kind, type=told.type, message=told.message, stack=told.stack[:100])


def _ended(why: End, version: Version) -> Failure:
    if why is End.TIMEOUT:
        message = f"the function did not end within its timeout of {version.config.timeout_s:g} s"
        return Failure(error_class=ErrorClass.TIMEOUT, type="Timeout", message=message)
    return Failure(error_class=ErrorClass.CANCELLED, type="Cancelled", message="the invocation was cancelled")
