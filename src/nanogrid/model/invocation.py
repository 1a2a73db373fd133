"""An invocation: its record, its legal transitions, its outcome and the classes of failure."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec


class Status(StrEnum):
    """Where an invocation stands; the reason of a failure is an ErrorClass, never a fifth status."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


TERMINAL: Final = frozenset((Status.SUCCESS, Status.FAILED))

# The one table of legal moves. PROCESSING -> PROCESSING is a new attempt that takes over an expired
# lease; PROCESSING -> PENDING waits for a retry.
TRANSITIONS: Final[dict[Status, frozenset[Status]]] = {
    Status.PENDING: frozenset((Status.PROCESSING, Status.SUCCESS, Status.FAILED)),
    Status.PROCESSING: frozenset((Status.PENDING, Status.PROCESSING, Status.SUCCESS, Status.FAILED)),
    Status.SUCCESS: frozenset(),
    Status.FAILED: frozenset(),
}


class ErrorClass(StrEnum):
    """Why an attempt failed. Whether it is tried again depends on this and on nothing else."""

    FUNCTION_ERROR = "FUNCTION_ERROR"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    SANDBOX_CRASH = "SANDBOX_CRASH"
    RESULT_INVALID = "RESULT_INVALID"
    CANCELLED = "CANCELLED"
    WORKER_LOST = "WORKER_LOST"
    PLATFORM = "PLATFORM"


RETRIED: Final = frozenset(
    (
        ErrorClass.FUNCTION_ERROR,
        ErrorClass.TIMEOUT,
        ErrorClass.OUT_OF_MEMORY,
        ErrorClass.SANDBOX_CRASH,
        ErrorClass.WORKER_LOST,
        ErrorClass.PLATFORM,
    )
)


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A failed attempt, as users see it."""

    error_class: ErrorClass
    type: str
    message: str
    stack: list[str] = []


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an attempt took. Times in milliseconds, memory in MiB; None means not measured at this level."""

    queue_ms: float = 0.0
    cold_start_ms: float = 0.0
    run_ms: float = 0.0
    cpu_ms: float | None = None
    memory_peak_mb: float | None = None


class Invocation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The record of one accepted call. Times are seconds since the epoch."""

    id: str
    function: str
    version: int
    trigger: str = "sync"
    qualifier: str = "$LATEST"
    status: Status = Status.PENDING
    attempt: int = 0
    """How often it was claimed; also the fencing token: a write with an older number is refused."""
    retries: int = 2
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    not_before: float | None = None
    lease_until: float | None = None
    worker: str | None = None
    isolation: str | None = None
    cold: bool = False
    failure: Failure | None = None
    usage: Usage | None = None
    event: bytes = b""
    event_key: str | None = None
    """Where the event lies on the object store when it is too large to be kept inline."""
    event_type: str = "application/json"
    result: bytes | None = None
    result_key: str | None = None
    result_type: str = "application/json"
    log: str = ""
    log_truncated: bool = False
    idempotency_key: str | None = None
    callback: str | None = None
    replay_of: str | None = None
    cancel_requested: bool = False
    dead_letter: bool = False
    schedule_at: float | None = None

    @property
    def done(self) -> bool:
        """Whether the state is terminal."""
        return self.status in TERMINAL

    def public(self) -> dict[str, Any]:
        """The record as the API shows it: no payloads, no log, only what is set."""
        shown: dict[str, Any] = msgspec.to_builtins(self)
        for key in ("event", "result", "log", "lease_until"):
            shown.pop(key, None)
        shown["status"] = str(self.status)
        shown["attempt"] = self.attempt
        shown["trigger"] = self.trigger
        return shown


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A queue message: all that is needed to run the invocation if the state store forgot everything."""

    id: str
    function: str
    version: int
    qualifier: str = "$LATEST"
    trigger: str = "async"
    retries: int = 2
    created_at: float = 0.0
    event: bytes = b""
    event_key: str | None = None
    event_type: str = "application/json"
    callback: str | None = None
    idempotency_key: str | None = None
    replay_of: str | None = None
    protocol: int = 1


def message_of(record: Invocation) -> Message:
    """The message that carries `record` through the queue."""
    return Message(**{name: getattr(record, name) for name in Message.__struct_fields__ if name != "protocol"})


def record_of(message: Message) -> Invocation:
    """The PENDING record that `message` stands for."""
    return Invocation(**{name: getattr(message, name) for name in Message.__struct_fields__ if name != "protocol"})


class Reply(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a worker answers a controller with, in the meta of an OUTCOME frame; the payload is the result."""

    failure: Failure | None = None
    type: str = "application/json"
    attempt: int = 1
    cold: bool = False
    usage: Usage | None = None
    result_key: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened to an invocation, as live streams show it.

    `n` is its place in the log of the grid (the Last-Event-ID); 0 before it is stored.
    """

    id: str
    function: str
    kind: str
    """`status`, `progress` or `partial`."""
    at: float
    n: int = 0
    status: Status | None = None
    attempt: int = 0
    data: Any = None
