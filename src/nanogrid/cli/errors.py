"""Why a command ends early, and with which exit status.

1  the function failed, or its code does not build or load
2  the request is wrong: usage, a name that does not exist, a key without the scope
3  the platform failed, or no grid answers
4  the wait is over and the invocation still goes on
"""

from __future__ import annotations

from typing import Any, Final

FUNCTION_FAILED: Final = 1
USAGE: Final = 2
PLATFORM_FAILED: Final = 3
STILL_RUNNING: Final = 4
INTERRUPTED: Final = 130

PLATFORM_CODES: Final = frozenset(("PLATFORM", "WORKER_LOST"))
"""Error classes of an invocation that are the platform's fault, not the function's."""


class CliError(Exception):
    """Ends the command: `message` goes to stderr, `status` is the exit status."""

    def __init__(self, message: str, status: int = USAGE, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.body = body
        """The problem document behind it, for `-o json`."""


class NoGrid(CliError):
    """Nothing answers at the address."""

    def __init__(self, url: str, reason: str) -> None:
        detail = f"no grid answers at {url} ({reason}): start one with `nanogrid up`, or set NANOGRID_URL"
        body = {"title": "No grid", "status": 503, "code": "NO_GRID", "detail": detail}
        super().__init__(detail, PLATFORM_FAILED, body)


class Interrupted(NoGrid):
    """The connection broke in the middle of an answer."""


class Problem(CliError):
    """An error that the grid answered with (RFC 9457)."""

    def __init__(self, body: dict[str, Any], http_status: int) -> None:
        self.code = str(body.get("code", ""))
        self.http_status = http_status
        self.invocation: str | None = body.get("invocation")
        self.failure: dict[str, Any] | None = body.get("failure")
        detail = str(body.get("detail") or body.get("title") or f"HTTP {http_status}")
        super().__init__(detail, status_of(self.code, http_status, self.failure), body)


def status_of(code: str, http_status: int, failure: dict[str, Any] | None) -> int:
    """The exit status that an answer of the grid leads to; looks at codes, never at text."""
    if code in PLATFORM_CODES:
        return PLATFORM_FAILED
    if failure is not None or code == "BUILD_FAILED":
        return FUNCTION_FAILED
    return USAGE if 400 <= http_status < 500 and http_status != 429 else PLATFORM_FAILED
