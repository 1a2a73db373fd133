"""A stand-in for a grid's HTTP API: scripted answers, and what was asked. For tests of the command line only."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

KEY = "ng_test"


class Asked(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class StandIn:
    """Answers `METHOD /path` from a script; the last answer of a route is given again and again."""

    def __init__(self) -> None:
        self.script: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.asked: list[Asked] = []
        self.url = ""

    def on(self, route: str, status: int, body: Any = b"", **headers: str) -> None:
        """Adds an answer; anything but bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        shown = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        self.script.setdefault(route, []).append((status, shown, content))

    def answer(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        """The next answer of the route."""
        self.asked.append(asked)
        answers = self.script.get(f"{asked.method} {asked.path.partition('?')[0]}")
        if not answers:
            return 404, {}, json.dumps({"code": "NOT_FOUND", "status": 404, "detail": "there is nothing"}).encode()
        return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def serve(stand_in: StandIn) -> Iterator[StandIn]:
    """Listens on a free port while the block lasts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, shown, content = stand_in.answer(Asked(self.command, self.path, headers, body))
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**shown, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
