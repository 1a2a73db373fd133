"""`nanogrid logs`: what a function printed, over its invocations, and as it happens."""

from __future__ import annotations

import http.client
import re
import threading
from typing import Any, Final

import click

from nanogrid.cli.client import segment
from nanogrid.cli.errors import CliError
from nanogrid.cli.invocations import show_log
from nanogrid.cli.live import TERMINAL, log_lines, status_text
from nanogrid.cli.output import escape
from nanogrid.cli.shared import Grid, with_grid

AN_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FOLLOWED: Final = 32
"""Invocations whose output is followed at the same time; of more, the log is shown at their end."""


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Goes on with new invocations, until Ctrl-C.")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many invocations."
)
@with_grid
def logs(grid: Grid, name: str, follow: bool, limit: int) -> None:
    """Shows what a function printed.

    NAME is a function (its newest invocations, oldest first) or the id of an invocation. Every line of a
    function's log begins with the last characters of the invocation's id.
    """
    if AN_ID.fullmatch(name):
        show_log(grid, name, follow)
        return
    if follow:
        grid.client.get(f"/v1/functions/{segment(name)}")
        _Tail(grid).follow(name)
        return
    page = grid.client.get("/v1/invocations", {"function": name, "limit": limit})["invocations"]
    if not page:
        grid.client.get(f"/v1/functions/{segment(name)}")
        grid.out.note(f"{name} has no invocations")
    shown = []
    for record in reversed(page):
        text = _log_of(grid, record["id"])
        if grid.out.as_json:
            shown.append({"id": record["id"], "status": record["status"], "log": text})
            continue
        for line in text.splitlines():
            grid.out.line(f"{short(record['id'])} {escape(line)}")
    if grid.out.as_json:
        grid.out.json(shown)


def short(id: str) -> str:
    """What tells invocations apart at a glance: the random end of the id."""
    return id[-6:]


def _log_of(grid: Grid, id: str) -> str:
    return grid.client.request("GET", f"/v1/invocations/{segment(id)}/logs").body.decode("utf-8", "replace")


class _Tail:
    """Follows the invocations of a function, each on a thread of its own."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._lock = threading.Lock()
        self._followed: dict[str, threading.Thread] = {}

    def follow(self, name: str) -> None:
        self._grid.out.note(f"following {name}; Ctrl-C ends it")
        for event in self._grid.client.events("/v1/events", {"function": name}):
            if event.kind == "status":
                self._on_status(str(event.data["id"]), event.data)

    def _on_status(self, id: str, event: dict[str, Any]) -> None:
        if event["status"] == "PROCESSING" and id not in self._followed and len(self._followed) < FOLLOWED:
            thread = threading.Thread(target=self._follow_one, args=(id,), daemon=True)
            self._followed[id] = thread
            thread.start()
        elif event["status"] in TERMINAL:
            thread_of = self._followed.pop(id, None)
            if thread_of is None:
                self._show_whole(id)
            else:
                thread_of.join(2.0)
            self._print(id, status_text(event))

    def _follow_one(self, id: str) -> None:
        try:
            for line in log_lines(self._grid.client, id):
                self._print(id, escape(line))
        except (CliError, OSError, http.client.HTTPException) as error:
            self._grid.out.note(f"{short(id)} (the log broke off: {error})")

    def _show_whole(self, id: str) -> None:
        for line in _log_of(self._grid, id).splitlines():
            self._print(id, escape(line))

    def _print(self, id: str, text: str) -> None:
        with self._lock:
            if self._grid.out.as_json:
                self._grid.out.json({"id": id, "line": text})
            else:
                self._grid.out.line(f"{short(id)} {text}")
