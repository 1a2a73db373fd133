"""Live events by SSE, resumable by Last-Event-ID on any controller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from nanogrid.controller.access import authorize_all, record_for, services_of
from nanogrid.errors import InvalidRequest
from nanogrid.model.invocation import TERMINAL, Event

HEARTBEAT_S = 15.0
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def as_sse(event: Event) -> bytes:
    """One event in the text/event-stream format."""
    return f"id: {event.n}\nevent: {event.kind}\ndata: {msgspec.json.encode(event).decode()}\n\n".encode()


def last_event_id(request: Request) -> int | None:
    """Where a client wants to go on; None when it comes for the first time."""
    text = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    if text is None:
        return None
    if not text.isdigit():
        raise InvalidRequest(f"Last-Event-ID {text[:20]!r} is not a number")
    return int(text)


async def invocation_events(request: Request) -> Response:
    """All events of one invocation, from the first; ends after the terminal state."""
    record = await record_for(request, "read")
    if record.done and (after := last_event_id(request)) is not None:
        return StreamingResponse(_rest(request, record.id, after), media_type="text/event-stream", headers=HEADERS)
    events = services_of(request).state.events(after=last_event_id(request) or 0, id=record.id)
    return StreamingResponse(_stream(request, events, one=True), media_type="text/event-stream", headers=HEADERS)


async def all_events(request: Request) -> Response:
    """State changes of the whole grid, or of one function; new ones only, unless Last-Event-ID is given."""
    function = request.query_params.get("function")
    authorize_all(request, "read", function)
    events = services_of(request).state.events(after=last_event_id(request), function=function)
    return StreamingResponse(_stream(request, events, one=False), media_type="text/event-stream", headers=HEADERS)


async def _rest(request: Request, id: str, after: int) -> AsyncIterator[bytes]:
    """What is left of a finished invocation's events; the end was seen already when nothing comes soon."""
    events = services_of(request).state.events(after=after, id=id)
    yield b": nanogrid\n\n"
    with contextlib.suppress(TimeoutError, StopAsyncIteration):
        while True:
            event = await asyncio.wait_for(anext(events), 0.2)
            yield as_sse(event)
            if event.status in TERMINAL:
                break
    await events.aclose()  # type: ignore[attr-defined]


async def _stream(request: Request, events: AsyncIterator[Event], *, one: bool) -> AsyncIterator[bytes]:
    """Events as they come, a comment when it is quiet, and `retry` when the controller stops."""
    stopping = asyncio.ensure_future(services_of(request).stopping.wait())
    coming: asyncio.Future[Event] | None = None
    yield b": nanogrid\n\n"
    try:
        while not stopping.done():
            if coming is None:
                coming = asyncio.ensure_future(anext(events))
            await asyncio.wait((coming, stopping), timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                yield b": still here\n\n"
                continue
            event, coming = coming.result(), None
            yield as_sse(event)
            if one and event.status in TERMINAL:
                return
        yield b"retry: 1000\n\n"
    except StopAsyncIteration:
        return
    finally:
        stopping.cancel()
        if coming is not None:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await coming
        await events.aclose()  # type: ignore[attr-defined]
