"""`nanogrid invocations` and `nanogrid dlq`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import click

from nanogrid.cli.client import Client, segment
from nanogrid.cli.errors import STILL_RUNNING, CliError
from nanogrid.cli.invoke import result_of, show_result
from nanogrid.cli.live import TERMINAL, log_lines, wait_for
from nanogrid.cli.output import Columns, escape
from nanogrid.cli.shared import Grid, confirm, with_grid, yes_option
from nanogrid.cli.times import Span, age, moment, span_ms

PAGE: Final = 1000
STATUSES: Final = ("PENDING", "PROCESSING", "SUCCESS", "FAILED")


def _failure(record: Any) -> str | None:
    failure = record.get("failure")
    return f"{failure['error_class']}: {failure['type']}: {failure['message']}" if failure else None


def _run_ms(record: Any) -> str | None:
    usage = record.get("usage")
    return span_ms(usage.get("run_ms", 0.0)) if usage and record["status"] in TERMINAL else None


LIST: Final[Columns] = {
    "ID": "id",
    "FUNCTION": lambda r: f"{r['function']}:{r['version']}",
    "STATUS": "status",
    "TRIGGER": "trigger",
    "ATTEMPT": "attempt",
    "AGE": lambda r: age(r.get("created_at")),
    "RUN": _run_ms,
    "ERROR": lambda r: (_failure(r) or "")[:60] or None,
}
RECORD: Final[Columns] = {
    "ID": "id",
    "FUNCTION": lambda r: f"{r['function']}:{r['version']}",
    "QUALIFIER": "qualifier",
    "STATUS": "status",
    "FAILURE": _failure,
    "TRIGGER": "trigger",
    "ATTEMPT": "attempt",
    "REPLAY OF": "replay_of",
    "CREATED": lambda r: moment(r.get("created_at")),
    "STARTED": lambda r: moment(r.get("started_at")),
    "ENDED": lambda r: moment(r.get("ended_at")),
    "NEXT ATTEMPT": lambda r: moment(r.get("not_before")),
    "WORKER": "worker",
    "ISOLATION": "isolation",
    "START": lambda r: ("cold" if r.get("cold") else "warm") if r.get("started_at") else None,
    "QUEUE": lambda r: span_ms((r.get("usage") or {}).get("queue_ms")),
    "COLD START": lambda r: span_ms((r.get("usage") or {}).get("cold_start_ms")),
    "RUN": _run_ms,
    "CPU": lambda r: span_ms((r.get("usage") or {}).get("cpu_ms")),
    "MEMORY PEAK": lambda r: _mib((r.get("usage") or {}).get("memory_peak_mb")),
}


def _mib(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f} MiB"


@click.group()
def invocations() -> None:
    """Lists, shows, cancels and replays invocations."""


@invocations.command("ls")
@click.option("--function", help="Only those of this function.")
@click.option("--status", type=click.Choice(STATUSES, case_sensitive=False), help="Only those in this state.")
@click.option("--since", type=Span(), help="Only those of the last 15m, 2h, 7d.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@click.option("--cursor", help="Goes on behind this id (the `cursor` of -o json).")
@with_grid
def invocations_ls(
    grid: Grid, function: str | None, status: str | None, since: float | None, limit: int, cursor: str | None
) -> None:
    """Lists invocations, newest first."""
    query = {
        "function": function,
        "status": status.upper() if status else None,
        "since": None if since is None else f"{time.time() - since:.3f}",
        "limit": limit,
        "cursor": cursor,
    }
    page = grid.client.get("/v1/invocations", query)
    grid.out.table(page["invocations"], LIST, "no invocations: start one with `nanogrid invoke NAME`", page)


@invocations.command("get")
@click.argument("id")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), help="Waits so many seconds for its end.")
@with_grid
def invocations_get(grid: Grid, id: str, wait_s: float | None) -> None:
    """Shows the record of an invocation."""
    record = grid.client.get(f"/v1/invocations/{segment(id)}") if wait_s is None else wait_for(grid.client, id, wait_s)
    grid.out.fields(record, RECORD)
    if not grid.out.as_json:
        for line in (record.get("failure") or {}).get("stack", ()):
            grid.out.line(f"  {escape(str(line)).rstrip()}")


@invocations.command("result")
@click.argument("id")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=0.0, help="Waits so many seconds for its end.")
@with_grid
def invocations_result(grid: Grid, id: str, wait_s: float) -> None:
    """Prints the result of an invocation, as `invoke` does, with the same exit status."""
    record = wait_for(grid.client, id, wait_s)
    if record["status"] not in TERMINAL:
        raise CliError(f"invocation {id} is {record['status']}: wait for it with --wait SECONDS", STILL_RUNNING)
    show_result(grid, result_of(grid.client, id))


@invocations.command("logs")
@click.argument("id")
@click.option("-f", "--follow", is_flag=True, help="Goes on until the invocation ends.")
@with_grid
def invocations_logs(grid: Grid, id: str, follow: bool) -> None:
    """Shows what an invocation printed."""
    show_log(grid, id, follow)


def show_log(grid: Grid, id: str, follow: bool) -> None:
    """The log of one invocation on stdout, with control characters escaped."""
    if follow and not grid.out.as_json:
        for line in log_lines(grid.client, id):
            grid.out.line(escape(line))
        return
    text = grid.client.request("GET", f"/v1/invocations/{segment(id)}/logs").body.decode("utf-8", "replace")
    if grid.out.as_json:
        grid.out.json({"id": id, "log": text})
    elif text:
        grid.out.line(escape(text).removesuffix("\n"))


@invocations.command("cancel")
@click.argument("id")
@with_grid
def invocations_cancel(grid: Grid, id: str) -> None:
    """Ends an invocation: SIGTERM, a grace, SIGKILL.

    Answers when the end is confirmed. One that has ended already keeps its outcome.
    """
    record = grid.client.send("POST", f"/v1/invocations/{segment(id)}:cancel")
    code = (record.get("failure") or {}).get("error_class")
    if code == "CANCELLED":
        sentence = f"cancelled {id}"
    elif record["status"] in TERMINAL:
        sentence = f"invocation {id} had ended already: {record['status']}"
    else:
        sentence = f"the cancel of {id} is asked for and not confirmed yet"
    grid.out.done(sentence, record)


@invocations.command("replay")
@click.argument("id")
@with_grid
def invocations_replay(grid: Grid, id: str) -> None:
    """Invokes again with the same event; prints the new id."""
    again = grid.client.send("POST", f"/v1/invocations/{segment(id)}:replay")
    grid.out.done(again["id"], again)
    grid.out.note(f"its result: nanogrid invocations result {again['id']} --wait 60")


@click.group()
def dlq() -> None:
    """Lists, redrives and purges dead letters."""


def dead_letters(client: Client) -> Iterator[dict[str, Any]]:
    """All dead letters, page by page."""
    cursor: str | None = None
    while True:
        page = client.get("/v1/dead-letters", {"limit": PAGE, "cursor": cursor})
        yield from page["dead_letters"]
        cursor = page.get("cursor")
        if not cursor:
            return


def _chosen(grid: Grid, ids: tuple[str, ...], everything: bool, function: str | None) -> list[str]:
    if bool(ids) == everything:
        raise click.UsageError("name the ids (see `nanogrid dlq ls`), or pass --all")
    if ids:
        return list(ids)
    return [letter["id"] for letter in dead_letters(grid.client) if function in (None, letter["function"])]


all_option = click.option("--all", "everything", is_flag=True, help="All of them.")
function_option = click.option("--function", help="With --all: only those of this function.")


@dlq.command("ls")
@click.option("--function", help="Only those of this function.")
@with_grid
def dlq_ls(grid: Grid, function: str | None) -> None:
    """Lists invocations that ran out of attempts."""
    found = [letter for letter in dead_letters(grid.client) if function in (None, letter["function"])]
    grid.out.table(found, LIST, "no dead letters")


@dlq.command("redrive")
@click.argument("ids", nargs=-1)
@all_option
@function_option
@with_grid
def dlq_redrive(grid: Grid, ids: tuple[str, ...], everything: bool, function: str | None) -> None:
    """Invokes dead letters again, each as a new invocation; prints the new ids."""
    again = [
        grid.client.send("POST", f"/v1/dead-letters/{segment(id)}:redrive")
        for id in _chosen(grid, ids, everything, function)
    ]
    if grid.out.as_json:
        grid.out.json(again)
        return
    for one in again:
        grid.out.line(one["id"])
    grid.out.note(f"redriven: {len(again)}")


@dlq.command("purge")
@click.argument("ids", nargs=-1)
@all_option
@function_option
@yes_option
@with_grid
def dlq_purge(grid: Grid, ids: tuple[str, ...], everything: bool, function: str | None, yes: bool) -> None:
    """Forgets dead letters, with their events."""
    chosen = _chosen(grid, ids, everything, function)
    if chosen:
        confirm(f"Forget {len(chosen)} dead letters?", yes)
    for id in chosen:
        grid.client.send("DELETE", f"/v1/dead-letters/{segment(id)}")
    grid.out.done(f"purged: {len(chosen)}", {"purged": chosen})
