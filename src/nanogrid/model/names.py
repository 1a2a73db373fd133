"""Every id and every key: nowhere else is one put together."""

from __future__ import annotations

import os
import time
from typing import Final

INLINE_LIMIT: Final = 256 * 1024
"""Bytes of an event or result that state and queue carry inline (the limit of an SQS message)."""


def new_id(now: float | None = None, random: bytes | None = None) -> str:
    """A UUIDv7 (RFC 9562): sorts by time, and leads to the archive segment of its moment."""
    millis = int((time.time() if now is None else now) * 1000)
    tail = bytearray(os.urandom(10) if random is None else random)
    tail[0] = 0x70 | tail[0] & 0x0F
    tail[2] = 0x80 | tail[2] & 0x3F
    text = f"{millis:012x}{tail.hex()}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def made_at(id: str) -> float | None:
    """When `new_id` made an id, in seconds since the epoch; None for what is no such id."""
    digits = id.replace("-", "")[:12]
    try:
        return int(digits, 16) / 1000 if len(digits) == 12 else None
    except ValueError:
        return None


def function_prefix(name: str) -> str:
    """Where the revisions of a function lie on the object store."""
    return f"functions/{name}/rev/"


def function_revision(name: str, revision: int) -> str:
    """The key of one immutable revision; zero-padded, so that listing gives them in order."""
    return f"{function_prefix(name)}{revision:010d}"


def code_key(sha256: str) -> str:
    """A built code package, by content."""
    return f"code/{sha256[:2]}/{sha256}.zip"


def event_key(invocation: str) -> str:
    """An event too large to be kept inline."""
    return f"events/{invocation}"


def result_key(invocation: str, attempt: int) -> str:
    """A result too large to be kept inline; one key an attempt, so that no attempt overwrites another."""
    return f"results/{invocation}/{attempt}"


def dead_letter_key(invocation: str) -> str:
    """A dead letter: the record, with its event, of an invocation that ran out of attempts."""
    return f"dead-letters/{invocation}"
