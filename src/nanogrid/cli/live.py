"""Showing an invocation while it happens: state changes, progress, partial output and log, on stderr."""

from __future__ import annotations

import codecs
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from nanogrid.cli.client import Client, segment
from nanogrid.cli.errors import CliError, NoGrid, Problem
from nanogrid.cli.output import Output, escape

POLL_S: Final = 55
PATIENCE_S: Final = 60.0
"""How long a grid that went away may stay away before waiting for an invocation is given up."""
APPEAR_S: Final = 3.0
"""A record of a direct call is written behind: it may come a moment after its id is known."""
JOIN_S: Final = 5.0
TERMINAL: Final = ("SUCCESS", "FAILED")


def wait_for(client: Client, id: str, wait_s: float | None = None) -> dict[str, Any]:
    """The record once the invocation ended, or as it is after `wait_s` (None: as long as it takes)."""
    until = None if wait_s is None else time.monotonic() + wait_s
    gone_since: float | None = None
    while True:
        left = POLL_S if until is None else min(POLL_S, max(0.0, until - time.monotonic()))
        try:
            record: dict[str, Any] = client.get(f"/v1/invocations/{segment(id)}", {"wait": f"{left:.3f}"}, left + 30.0)
        except NoGrid:
            gone_since = gone_since or time.monotonic()
            if time.monotonic() - gone_since > PATIENCE_S:
                raise
            time.sleep(1.0)
            continue
        gone_since = None
        if record["status"] in TERMINAL or (until is not None and time.monotonic() >= until):
            return record


def when_it_appears(ask: Callable[[], Any]) -> Any:
    """The answer of `ask`, which is repeated for a moment as long as it says NOT_FOUND."""
    until = time.monotonic() + APPEAR_S
    while True:
        try:
            return ask()
        except Problem as problem:
            if problem.http_status != 404 or time.monotonic() > until:
                raise
            time.sleep(0.1)


def log_lines(client: Client, id: str) -> Iterator[str]:
    """The lines of an invocation's log as they come, until it ends."""
    path = f"/v1/invocations/{segment(id)}/logs?follow=1"
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pending = ""
    with client.open("GET", path, timeout_s=None) as response:
        while block := response.read1(1 << 16):
            *lines, pending = (pending + decoder.decode(block)).split("\n")
            yield from lines
    if pending:
        yield pending


class Follower:
    """Shows one invocation; every line carries the seconds since it was accepted."""

    def __init__(self, client: Client, out: Output) -> None:
        self._client = client
        self._out = out
        self._start: float | None = None
        self._lock = threading.Lock()

    def follow(self, id: str) -> None:
        """Shows everything from the start to the terminal state, then returns."""
        when_it_appears(lambda: self._client.get(f"/v1/invocations/{segment(id)}"))
        log = threading.Thread(target=self._follow_log, args=(id,), daemon=True)
        log.start()
        for event in self._client.events(f"/v1/invocations/{segment(id)}/events"):
            self._show(event.kind, event.data)
        log.join(JOIN_S)

    def _follow_log(self, id: str) -> None:
        try:
            for line in log_lines(self._client, id):
                self._say(f"          | {escape(line)}")
        except (CliError, OSError, http.client.HTTPException) as error:
            self._say(f"          (the log broke off: {error})")

    def _show(self, kind: str, event: dict[str, Any]) -> None:
        at = float(event.get("at", 0.0))
        self._start = at if self._start is None else self._start
        head = f"{max(0.0, at - self._start):8.2f}s "
        if kind == "status":
            self._say(head + status_text(event))
        elif kind == "progress":
            self._say(f"{head}progress {progress_text(event.get('data'))}")
        elif kind == "partial":
            for line in escape(str(event.get("data", ""))).splitlines():
                self._say(f"          > {line}")

    def _say(self, text: str) -> None:
        with self._lock:
            self._out.note(text)


def status_text(event: dict[str, Any]) -> str:
    """A state change in words."""
    text = escape(str(event.get("status")))
    attempt = event.get("attempt", 0)
    if text == "PROCESSING" and attempt > 1:
        text += f" (attempt {attempt})"
    data = event.get("data")
    if isinstance(data, dict) and data.get("error_class"):
        text += f" {escape(str(data['error_class']))}: {escape(str(data.get('message', '')))}"
    return text


def progress_text(value: object) -> str:
    """What a function said of its progress."""
    if isinstance(value, float) and 0.0 <= value <= 1.0:
        return f"{value:.0%}"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
