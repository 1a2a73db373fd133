"""The invoke route, on the HTTP parser itself: no framework, no coroutine, the event never decoded.

`POST /v1/functions/{name}[:{qualifier}]/invocations` is answered here; every other request goes on to the
ASGI application as uvicorn would have it. Stands first in the path of an invocation.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nanogrid.credentials.keys import Keys
from nanogrid.errors import Forbidden, InvalidRequest, NanoGridError, TooLarge, Unauthenticated
from nanogrid.invoke.calls import Call
from nanogrid.invoke.invoker import Answer, Invoker
from nanogrid.model.invocation import ErrorClass, Failure
from nanogrid.model.names import new_id
from nanogrid.registry.base import Registry

log = logging.getLogger(__name__)

PREFIX: Final = b"/v1/functions/"
SUFFIX: Final = b"/invocations"
STATUS_OF: Final = {ErrorClass.WORKER_LOST: 503, ErrorClass.PLATFORM: 503, ErrorClass.CANCELLED: 409}
"""Any other failure is the function's own: 422."""
DISCARD_S: Final = 10.0
"""How long the rest of a refused body is read, and thrown away."""
JSON_TYPE: Final = "application/json"

_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_encode = msgspec.json.Encoder().encode


class Front:
    """What the protocol needs of the controller; one per process."""

    def __init__(self, invoker: Invoker, registry: Registry, keys: Keys, wait_s: float, max_event: int) -> None:
        self.invoker = invoker
        self.registry = registry
        self.keys = keys
        self.wait_s = wait_s
        self.max_event = max_event
        self._background: set[asyncio.Future[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Keeps a slow answer alive until it is given."""
        future = asyncio.ensure_future(work)
        self._background.add(future)
        future.add_done_callback(self._background.discard)

    def protocol(self) -> type[HttpToolsProtocol]:
        """The protocol class for uvicorn's `http` setting, bound to this front."""
        front = self

        class Bound(FrontProtocol):
            pass

        Bound.front = front
        return Bound


class _Quiet:
    """Stands where uvicorn's own cycle has an event."""

    def set(self) -> None:
        """Nobody waits."""


_QUIET: Final = _Quiet()


class InvokeCycle:
    """One request to the invoke route; takes the place of uvicorn's request-response cycle."""

    __slots__ = (
        "asynchronous", "body", "callback", "content_type", "disconnected", "error", "idempotency_key", "keep_alive",
        "message_event", "more_body", "name", "protocol", "qualifier", "request_id", "response_complete", "wait_s",
    )  # fmt: skip

    def __init__(self, protocol: FrontProtocol, keep_alive: bool) -> None:
        self.protocol = protocol
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.more_body = True
        self.disconnected = False
        self.response_complete = False
        self.message_event = _QUIET
        self.error: NanoGridError | None = None
        self.name = ""
        self.qualifier = "$LATEST"
        self.content_type = JSON_TYPE
        self.wait_s = protocol.front.wait_s
        self.asynchronous = False
        self.idempotency_key: str | None = None
        self.callback: str | None = None
        self.request_id = ""

    def read_head(self, target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Checks all that can be checked before the body; what is wrong is kept in `error`."""
        front = self.protocol.front
        self.name, _, qualifier = unquote(target.decode("latin-1")).partition(":")
        self.qualifier = qualifier or "$LATEST"
        token = ""
        for name, value in headers:
            if name == b"authorization":
                token = value.decode("latin-1")
            elif name == b"content-type":
                self.content_type = value.decode("latin-1")
            elif name == b"content-length" and int(value) > front.max_event:
                self.error = TooLarge(
                    f"the event has {int(value) >> 20} MiB, the limit is {front.max_event >> 20} MiB"
                    " (setting max_event_mb): put large data in an object store and send its address"
                )
            elif name == b"prefer":
                self._read_prefer(value.decode("latin-1"))
            elif name == b"idempotency-key":
                self.idempotency_key = value.decode("latin-1")[:256]
            elif name == b"x-nanogrid-callback":
                self.callback = value.decode("latin-1")
            elif name == b"x-request-id":
                self.request_id = value.decode("latin-1")[:128]
        if token[:7].lower() != "bearer ":
            self.error = Unauthenticated("this needs a key: send the header 'Authorization: Bearer ng_...'")
            return
        key = front.keys.verify(token[7:].strip())
        if key is None:
            self.error = Unauthenticated("the key is not known, expired or revoked")
        elif not key.allows("invoke", self.name):
            self.error = Forbidden(
                f"the key {key.name!r} may not invoke {self.name!r}: it lacks the scope 'invoke' for it"
            )

    def _read_prefer(self, value: str) -> None:
        for part in value.split(","):
            word, _, number = part.strip().partition("=")
            if word == "respond-async":
                self.asynchronous = True
            elif word == "wait":
                try:
                    self.wait_s = max(0.0, float(number))
                except ValueError:
                    self.error = InvalidRequest(f"Prefer: wait={number[:20]!r} is not a number of seconds")
                else:
                    self.asynchronous = self.asynchronous or self.wait_s == 0

    def begin(self) -> None:
        """The request is whole and its turn has come."""
        if self.error is not None:
            self.fail(self.error)
            return
        front = self.protocol.front
        event = bytes(self.body) if self.body or self.content_type != JSON_TYPE else b"null"
        call = Call(
            self.name, self.qualifier, event, self.content_type,
            idempotency_key=self.idempotency_key, callback=self.callback,
        )  # fmt: skip
        if self.asynchronous:
            front.spawn(self._submit(call))
            return
        try:
            if front.registry.cached(self.name) is None:
                front.spawn(self._resolve_slowly(call))
                return
            version = front.registry.resolve(self.name, self.qualifier, front.invoker.draw())
        except NanoGridError as error:
            self.fail(error)
            return
        front.invoker.direct(call, version, self.wait_s, self.answer)

    async def _resolve_slowly(self, call: Call) -> None:
        invoker = self.protocol.front.invoker
        try:
            version = await invoker.resolve(call.function, call.qualifier)
        except NanoGridError as error:
            self.fail(error)
        except Exception:
            log.exception("resolve_failed")
            self.fail(NanoGridError("the platform failed; its log has the cause"))
        else:
            invoker.direct(call, version, self.wait_s, self.answer)

    async def _submit(self, call: Call) -> None:
        try:
            [record] = await self.protocol.front.invoker.submit([call])
        except NanoGridError as error:
            self.fail(error)
        except Exception:
            log.exception("submit_failed")
            self.fail(NanoGridError("the platform failed; its log has the cause"))
        else:
            self._accepted(record.id, str(record.status))

    # -- answers ------------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """The invoker's answer, as HTTP."""
        if answer.error is not None:
            self.fail(answer.error)
        elif answer.reply is None:
            self._accepted(answer.id, "PROCESSING")
        elif answer.reply.failure is None:
            self._write(200, answer.reply.type, answer.payload, answer.id)
        else:
            self._failed(answer.id, answer.reply.failure)

    def _accepted(self, id: str, status: str) -> None:
        body = _encode({"id": id, "url": f"/v1/invocations/{id}", "status": status})
        self._write(202, JSON_TYPE, body, id, f"location: /v1/invocations/{id}\r\n")

    def _failed(self, id: str, failure: Failure) -> None:
        status = STATUS_OF.get(failure.error_class, 422)
        body = {
            "type": "about:blank", "title": "The function failed", "status": status, "code": str(failure.error_class),
            "detail": f"{failure.type}: {failure.message}", "request_id": self._request_id(), "invocation": id,
            "failure": {
                "error_class": str(failure.error_class), "type": failure.type, "message": failure.message,
                "stack": failure.stack,
            },
        }  # fmt: skip
        self._write(status, "application/problem+json", _encode(body), id)

    def fail(self, error: NanoGridError) -> None:
        """Answers with a problem (RFC 9457)."""
        body = {
            "type": "about:blank", "title": HTTPStatus(error.status).phrase, "status": error.status, "code": error.code,
            "detail": error.detail, "request_id": self._request_id(),
        }  # fmt: skip
        extra = "retry-after: 1\r\n" if error.retryable else ""
        self._write(error.status, "application/problem+json", json.dumps(body).encode(), "", extra)

    def _request_id(self) -> str:
        self.request_id = self.request_id or new_id()
        return self.request_id

    def _write(self, status: int, kind: str, body: bytes, id: str, extra: str = "") -> None:
        if self.response_complete:
            return
        self.response_complete = True
        transport = self.protocol.transport
        if self.disconnected or transport is None or transport.is_closing():
            return
        if id:
            extra = f"x-nanogrid-invocation-id: {id}\r\n{extra}"
        if self.request_id:
            extra = f"x-request-id: {self.request_id}\r\n{extra}"
        if not self.keep_alive:
            extra += "connection: close\r\n"
        head = f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode("latin-1", "replace")
        transport.write(b"".join((_LINES[status], head, body)))
        if self.keep_alive:
            self.protocol.on_response_complete()
        elif self.more_body:
            # The caller still sends: closed now, it would see a reset and not this answer.
            self.protocol.loop.call_later(DISCARD_S, transport.close)
        else:
            transport.close()


class FrontProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with the invoke route taken out of it."""

    front: Front

    def on_message_begin(self) -> None:
        """Keeps only what the invoke route needs; the rest is made when the request is for the application."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Decides who answers."""
        path, _, _ = self.url.partition(b"?")
        if path.startswith(PREFIX) and path.endswith(SUFFIX) and self.parser.get_method() == b"POST":
            self._begin_invoke(path[len(PREFIX) : -len(SUFFIX)])
            return
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()

    def _begin_invoke(self, target: bytes) -> None:
        before = self.cycle
        cycle = InvokeCycle(self, self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive())
        cycle.read_head(target, self.headers)
        self.cycle = cycle  # type: ignore[assignment]
        if before is not None and not before.response_complete:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]
            return
        if isinstance(cycle.error, TooLarge):
            # Not worth reading what is only thrown away.
            cycle.keep_alive = False
            cycle.fail(cycle.error)
        elif self.expect_100_continue and cycle.error is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the event."""
        cycle = self.cycle
        if not isinstance(cycle, InvokeCycle):
            super().on_body(body)
        elif not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > self.front.max_event and cycle.error is None:
                cycle.error = TooLarge(
                    f"the event is over the limit of {self.front.max_event >> 20} MiB (setting max_event_mb)"
                )
                cycle.body.clear()

    def on_message_complete(self) -> None:
        """The request is whole; a pipelined one waits for its turn."""
        cycle = self.cycle
        if not isinstance(cycle, InvokeCycle):
            super().on_message_complete()
            return
        cycle.more_body = False
        if cycle.response_complete and not cycle.keep_alive:
            self.transport.close()
        elif not cycle.response_complete and not any(waiting is cycle for waiting, _ in self.pipeline):
            cycle.begin()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, InvokeCycle):
            if not cycle.more_body:
                cycle.begin()
        else:
            super()._start_asgi_task(cycle, app)
