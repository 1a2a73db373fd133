"""What a caller asks for, before it has an id."""

from __future__ import annotations

from typing import NamedTuple


class Call(NamedTuple):
    """One call of a function; the event is never decoded."""

    function: str
    qualifier: str
    event: bytes
    event_type: str = "application/json"
    trigger: str = "sync"
    idempotency_key: str | None = None
    callback: str | None = None
    replay_of: str | None = None
    schedule_at: float | None = None
