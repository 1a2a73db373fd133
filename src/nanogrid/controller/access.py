"""Who may do what: the key of a request, and small readers of its parts."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from nanogrid.controller.services import Services
from nanogrid.credentials.keys import Key
from nanogrid.errors import Forbidden, InvalidRequest, TooLarge, Unauthenticated, unknown_invocation
from nanogrid.model.invocation import Invocation

T = TypeVar("T")


def services_of(request: Request) -> Services:
    """The controller's services."""
    services: Services = request.app.state.services
    return services


def authorize(request: Request, scope: str, function: str | None = None) -> Key:
    """The request's key, when it has the scope.

    Raises:
        Unauthenticated, Forbidden
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("this needs a key: send the header 'Authorization: Bearer ng_...'")
    key = services_of(request).keys.verify(token.strip())
    if key is None:
        raise Unauthenticated("the key is not known, expired or revoked")
    if not key.allows(scope, function):
        raise Forbidden(f"the key {key.name!r} lacks the scope {scope!r}" + (f" for {function!r}" if function else ""))
    return key


def authorize_all(request: Request, scope: str, function: str | None) -> Key:
    """As `authorize`, for what shows many functions unless `function` limits it: a key for some must limit it."""
    key = authorize(request, scope, function)
    if function is None and key.functions != "*" and "admin" not in key.scopes:
        raise Forbidden(f"the key {key.name!r} is for the functions {key.functions!r}: ask with ?function=NAME")
    return key


async def record_for(request: Request, scope: str) -> Invocation:
    """The record that a path names; another's looks exactly like one that is not there.

    Raises:
        NotFound: no such invocation, or the key is not for its function.
    """
    key = authorize(request, scope)
    id = request.path_params["id"]
    record = await services_of(request).invoker.find(id)
    if not key.allows(scope, record.function):
        raise unknown_invocation(id)
    return record


async def body_of(request: Request, limit: int) -> bytes:
    """The whole body; raises TooLarge above `limit` bytes, before it is all read."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(f"the body is over the limit of {limit >> 20 or 1} MiB")
        parts.append(part)
    return b"".join(parts)


async def json_of(request: Request, kind: type[T], limit: int = 1 << 20) -> T:
    """The body as `kind`.

    Raises:
        InvalidRequest: it is not JSON, or a field is wrong; names the field.
    """
    return decode(await body_of(request, limit), kind, "the body")


def decode(data: bytes, kind: type[T], what: str) -> T:
    """`data` as `kind`; the error names `what` and the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{what} is wrong: {error}{_nearest(str(error), kind)}") from error


def _nearest(text: str, kind: Any) -> str:
    import difflib

    fields = getattr(kind, "__struct_fields__", ())
    if "unknown field" not in text or not fields:
        return ""
    unknown = text.partition("unknown field `")[2].partition("`")[0]
    close = difflib.get_close_matches(unknown, fields, n=1)
    return f" (did you mean `{close[0]}`?)" if close else f" (known: {', '.join(fields)})"


def number(request: Request, name: str, default: float, low: float, high: float) -> float:
    """A number from the query; raises InvalidRequest when it is none or out of range."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        raise InvalidRequest(f"{name}={text[:20]!r} is not a number") from None
    if not low <= value <= high:
        raise InvalidRequest(f"{name}={text[:20]} must be between {low:g} and {high:g}")
    return value
