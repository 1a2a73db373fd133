"""Every exception that NanoGrid raises on purpose.

A function's failure is not here: it is data (`model.invocation.Failure`). What is raised says that a
request was wrong or that the platform itself could not do its part.

    NanoGridError(detail, code, status, retryable)
      RequestError      InvalidRequest · Unauthenticated · Forbidden · NotFound · Conflict · TooLarge · Throttled
      PlatformError     StoreUnavailable · SandboxFailed · NoCapacity
      ConfigError       names the setting; stops the boot
"""

from __future__ import annotations

from typing import ClassVar


class NanoGridError(Exception):
    """Base of all: `detail` is a sentence for the user that names the cause and the next step."""

    code: ClassVar[str] = "PLATFORM"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class RequestError(NanoGridError):
    """The caller asked for something that cannot be done as asked."""

    code = "INVALID_REQUEST"
    status = 400


class InvalidRequest(RequestError):
    """Malformed or contradictory input."""


class BuildFailed(RequestError):
    """The build step of a deploy ended in an error; `extra["log"]` holds the end of its output."""

    code = "BUILD_FAILED"
    status = 422


class Unauthenticated(RequestError):
    """No key, or one that is not known, expired or revoked."""

    code = "UNAUTHENTICATED"
    status = 401


class Forbidden(RequestError):
    """The key is good but lacks the scope."""

    code = "FORBIDDEN"
    status = 403


class NotFound(RequestError):
    """Nothing of that name."""

    code = "NOT_FOUND"
    status = 404


def unknown_invocation(id: str) -> NotFound:
    """The one answer for an invocation that is not there, or not the caller's to see."""
    return NotFound(f"no invocation {id[:80]!r}: it never was, or its record expired")


class Conflict(RequestError):
    """The thing exists already or changed in the meantime."""

    code = "CONFLICT"
    status = 409


class TooLarge(RequestError):
    """Over a size limit; the detail names the limit."""

    code = "TOO_LARGE"
    status = 413


class Throttled(RequestError):
    """Over a rate or concurrency limit."""

    code = "THROTTLED"
    status = 429
    retryable = True


class PlatformError(NanoGridError):
    """The platform could not do its part; the caller may try again."""

    status = 503
    retryable = True


class StoreUnavailable(PlatformError):
    """A store, queue or bus did not answer."""

    code = "STORE_UNAVAILABLE"


class SandboxFailed(PlatformError):
    """A sandbox could not be made or was lost before the handler started."""

    code = "SANDBOX_FAILED"


class NoCapacity(PlatformError):
    """Nowhere to run and no queue to wait in."""

    code = "NO_CAPACITY"


class ConfigError(NanoGridError):
    """A setting is missing or wrong; the detail names every one of them."""

    code = "CONFIG"
