"""A small client of the HTTP API, on the standard library alone, so that a command starts fast.

Sends one request a connection. Only a request that can be repeated without harm is repeated: GET, PUT,
DELETE, and a POST with an idempotency key.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from nanogrid import __version__
from nanogrid.cli.errors import CliError, Interrupted, NoGrid, Problem
from nanogrid.cli.profile import Profile

CONNECT_S: Final = 10.0
READ_S: Final = 60.0
BLOCK: Final = 1 << 16
TRIES: Final = 4
RETRIED_STATUS: Final = frozenset((502, 503, 504))
IDEMPOTENT: Final = frozenset(("GET", "PUT", "DELETE"))
HEARTBEAT_S: Final = 45.0
"""A live stream that is silent for longer (three heartbeats of the server) is broken."""

Body = bytes | Callable[[], Iterable[bytes]]


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            CliError: it is none; then what answers is not a grid.
        """
        try:
            return json.loads(self.body) if self.body else {}
        except ValueError as error:
            raise CliError(f"the answer is not JSON: is this the address of a grid? {self.body[:80]!r}", 3) from error

    @property
    def invocation(self) -> str:
        """The invocation that the answer is about."""
        return self.headers.get("x-nanogrid-invocation-id", "")


class LiveEvent(NamedTuple):
    """One event of a live stream."""

    kind: str
    data: dict[str, Any]


class Client:
    """Talks to one grid."""

    def __init__(self, profile: Profile, sleep: Callable[[float], None] = time.sleep) -> None:
        self._url = profile.url
        self._key = profile.key
        self._sleep = sleep
        parts = urlsplit(profile.url)
        try:
            self._port = parts.port
        except ValueError:
            self._port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or self._port == -1:
            raise CliError(f"{profile.url!r} is not the address of a grid: use http://HOST:PORT or https://HOST")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._base = parts.path.rstrip("/")

    def get(self, path: str, query: Mapping[str, object] | None = None, timeout_s: float = READ_S) -> Any:
        """GET; the JSON of the answer."""
        return self.request("GET", path + _query(query), timeout_s=timeout_s).json()

    def send(self, method: str, path: str, value: object | None = None, timeout_s: float = READ_S) -> Any:
        """A request with a JSON body (or none); the JSON of the answer, {} when it has no body."""
        if value is None:
            return self.request(method, path, timeout_s=timeout_s).json()
        body = json.dumps(value).encode()
        return self.request(method, path, body, {"Content-Type": "application/json"}, timeout_s=timeout_s).json()

    def request(
        self,
        method: str,
        path: str,
        body: Body = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = READ_S,
    ) -> Reply:
        """Sends a request and reads the whole answer; repeats it after a fault when that is harmless.

        Raises:
            Problem: the grid answered with an error.
            NoGrid: it did not answer.
        """
        headers = headers or {}
        tries = TRIES if method in IDEMPOTENT or "Idempotency-Key" in headers else 1
        for attempt in range(1, tries + 1):
            try:
                response = self.open(method, path, body, headers, timeout_s)
                try:
                    return Reply(response.status, _lower(response), response.read())
                finally:
                    response.close()
            except Problem as problem:
                if attempt == tries or problem.http_status not in RETRIED_STATUS or problem.failure is not None:
                    raise
            except Interrupted:
                if attempt == tries:
                    raise
            except (OSError, http.client.HTTPException) as error:
                if attempt == tries:
                    raise Interrupted(self._url, _reason(error)) from error
            self._sleep(0.1 * 4.0 ** (attempt - 1))
        raise AssertionError("unreachable")

    def open(
        self,
        method: str,
        path: str,
        body: Body = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = READ_S,
    ) -> http.client.HTTPResponse:
        """Sends a request once and returns the answer unread, for streaming; close it.

        Raises:
            Problem, NoGrid
        """
        connection = self._connect()
        sent = {
            "Authorization": f"Bearer {self._key}",
            "User-Agent": f"nanogrid-cli/{__version__}",
            "Connection": "close",
            **(headers or {}),
        }
        try:
            connection.sock.settimeout(timeout_s)
            try:
                content = body if isinstance(body, bytes) else body()
                if body or method in ("POST", "PUT"):
                    connection.request(method, self._base + path, content, sent)
                else:
                    connection.request(method, self._base + path, headers=sent)
            except (BrokenPipeError, ConnectionResetError):
                # The grid may refuse a large body before it is all sent: its answer says why.
                pass
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Interrupted(self._url, _reason(error)) from error
        if response.status >= 400:
            raise _problem(response)
        return response

    def events(self, path: str, query: Mapping[str, object] | None = None) -> Iterator[LiveEvent]:
        """Events of a live stream as they come; goes on where it was when the connection breaks.

        Ends when the stream ends by itself; a controller that stops says `retry`, which is not an end.
        """
        last, failures = "", 0
        while True:
            again = False
            try:
                headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
                response = self.open("GET", path + _query(query), headers=headers, timeout_s=HEARTBEAT_S)
                with response:
                    for id, kind, data in _sse(response):
                        failures = 0
                        if kind == "retry":
                            again = True
                            continue
                        last = id or last
                        yield LiveEvent(kind, data)
                if not again:
                    return
            except (OSError, http.client.HTTPException, NoGrid) as error:
                if failures >= TRIES:
                    raise Interrupted(self._url, _reason(error)) from error
            failures += 1
            self._sleep(min(0.5 * 2.0**failures, 5.0))

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_S)
        try:
            connection.connect()
        except OSError as error:
            raise NoGrid(self._url, _reason(error)) from error
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection


def segment(text: str, safe: str = "") -> str:
    """`text` as one segment of a path."""
    return quote(text, safe=safe)


def _query(query: Mapping[str, object] | None) -> str:
    given = {key: value for key, value in (query or {}).items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _lower(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _reason(error: BaseException) -> str:
    if isinstance(error, NoGrid) and error.__cause__ is not None:
        return _reason(error.__cause__)
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__


def _problem(response: http.client.HTTPResponse) -> Problem:
    with response:
        content = response.read(1 << 20)
    try:
        body = json.loads(content)
        if not isinstance(body, dict):
            raise ValueError
    except ValueError:
        text = content[:200].decode("utf-8", "replace").strip()
        body = {"title": response.reason, "status": response.status, "detail": f"HTTP {response.status}: {text}"}
    return Problem(body, response.status)


def _sse(lines: Iterable[bytes]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of each event of a text/event-stream; ("", "retry", {}) for a `retry` field."""
    id, kind, data = "", "message", ""
    for raw in lines:
        name, _, value = raw.decode("utf-8", "replace").rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            id = value
        elif name == "event":
            kind = value
        elif name == "data":
            data += value
        elif name == "retry":
            yield "", "retry", {}
        elif not name and not value:
            if data:
                yield id, kind, json.loads(data)
            id, kind, data = "", "message", ""
