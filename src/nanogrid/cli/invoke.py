"""`nanogrid invoke`: calls a function; only the result goes to stdout."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any, Final

import click

from nanogrid.cli.client import Client, Reply, segment
from nanogrid.cli.errors import STILL_RUNNING, CliError, Problem
from nanogrid.cli.live import TERMINAL, Follower, wait_for, when_it_appears
from nanogrid.cli.output import escape
from nanogrid.cli.shared import Grid, with_grid

JSON_TYPE: Final = "application/json"
SYNC_WAIT_S: Final = 55.0
FOLLOW_WAIT_S: Final = 0.1
"""A followed call is answered with its id at once, and stays a synchronous one (no retries behind the back)."""
EXCERPT: Final = 30


@click.command()
@click.argument("name")
@click.option("-d", "--data", help="The event: JSON text, @FILE, or - for standard input [default: null].")
@click.option(
    "--type", "content_type", help="Content type of the event [default: application/json]; any other is not checked."
)
@click.option(
    "--async", "asynchronous", is_flag=True, help="Do not wait: print the invocation's id once it is durably stored."
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    help="Wait at most so many seconds [default: as long as it takes].",
)
@click.option("-f", "--follow", is_flag=True, help="Show state, progress and log on stderr while it runs.")
@click.option("-q", "--qualifier", help="Version or alias; NAME:QUALIFIER does the same [default: $LATEST].")
@click.option("--idempotency-key", help="Calls with the same key join the first one instead of running again.")
@click.option("--callback", help="URL that gets a signed POST when the invocation ends.")
@with_grid
def invoke(
    grid: Grid,
    name: str,
    data: str | None,
    content_type: str | None,
    asynchronous: bool,
    wait_s: float | None,
    follow: bool,
    qualifier: str | None,
    idempotency_key: str | None,
    callback: str | None,
) -> None:
    """Invokes a function and prints its result.

    Only the result goes to stdout; notes go to stderr. Exit status: 0 success, 1 the function failed, 2 usage,
    3 the platform failed, 4 the --wait is over and the invocation goes on.
    """
    if qualifier and ":" in name:
        raise click.UsageError("the qualifier is given twice: in NAME and with --qualifier")
    if asynchronous and wait_s is not None:
        raise click.UsageError("--async does not wait: leave out --wait")
    if follow and wait_s is not None:
        raise click.UsageError("--follow stays to the end: leave out --wait")
    target = f"{name}:{qualifier}" if qualifier else name
    event = read_event(data, content_type or JSON_TYPE)
    headers = {"Content-Type": content_type or JSON_TYPE}
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    if callback:
        headers["X-NanoGrid-Callback"] = callback
    asked_s = 0.0 if asynchronous else FOLLOW_WAIT_S if follow else SYNC_WAIT_S if wait_s is None else wait_s
    reply = call(grid.client, target, event, headers, asked_s)
    if not follow and reply.status == 202 and asynchronous:
        _accepted(grid, reply)
        return
    if follow:
        Follower(grid.client, grid.out).follow(reply.invocation)
    elif reply.status == 202:
        left_s = None if wait_s is None else max(0.0, wait_s - asked_s)
        record = wait_for(grid.client, reply.invocation, left_s)
        if record["status"] not in TERMINAL:
            _still_running(grid, reply.invocation)
    if reply.status == 202:
        reply = result_of(grid.client, reply.invocation)
    show_result(grid, reply)


def call(client: Client, target: str, event: bytes, headers: dict[str, str], wait_s: float) -> Reply:
    """POST to the invoke route.

    Args:
        client: the grid.
        target: name or name:qualifier.
        event: the event's bytes.
        headers: content type and the rest.
        wait_s: 0 is asynchronous; else the longest wait for a synchronous answer.

    Returns:
        200 with the result, or 202 with the id; a failure of the function in a call that is only asked for
        its id (`wait_s` at most that of --follow) is answered like a 202.

    Raises:
        Problem: the function failed, or the request is wrong.
    """
    prefer = "respond-async" if wait_s == 0 else f"wait={wait_s:g}"
    path = f"/v1/functions/{segment(target, safe=':$')}/invocations"
    try:
        return client.request("POST", path, event, {**headers, "Prefer": prefer}, wait_s + 30.0)
    except Problem as problem:
        if wait_s == FOLLOW_WAIT_S and problem.invocation:
            return Reply(202, {"x-nanogrid-invocation-id": problem.invocation}, b"")
        raise


def result_of(client: Client, id: str) -> Reply:
    """The result of an invocation that ended; raises Problem when it failed."""
    reply: Reply = when_it_appears(lambda: client.request("GET", f"/v1/invocations/{segment(id)}/result"))
    return reply


def show_result(grid: Grid, reply: Reply) -> None:
    """Prints the result of a successful invocation."""
    kind = reply.headers.get("content-type", JSON_TYPE)
    if grid.out.as_json:
        grid.out.json({"id": reply.invocation, "status": "SUCCESS", "type": kind, **_embedded(reply.body, kind)})
        return
    grid.out.payload(reply.body)


def show_failure(problem: Problem) -> str:
    """A failure of a function's code as text: what, where, and how to look further."""
    failure = problem.failure or {}
    told = f"{failure.get('type', '')}: {failure.get('message', '')}".strip(": ")
    head = f"{problem.code}: {told or problem.message}" if problem.invocation else f"nanogrid: {problem.message}"
    lines = [escape(head), *(f"  {escape(str(line)).rstrip()}" for line in failure.get("stack") or ())]
    if problem.invocation:
        lines.append(f"the log: nanogrid invocations logs {problem.invocation}")
    return "\n".join(lines)


def read_event(data: str | None, content_type: str = JSON_TYPE) -> bytes:
    """The event that -d names, checked to be JSON when it says that it is.

    Raises:
        CliError: the file cannot be read, or the text is not JSON; shows where.
    """
    if data is None:
        return b""
    if data == "-":
        event, source = sys.stdin.buffer.read(), "standard input"
    elif data.startswith("@"):
        source = data[1:]
        try:
            event = Path(source).read_bytes()
        except OSError as error:
            raise CliError(f"-d {data}: {error.strerror}") from error
    else:
        event, source = data.encode("utf-8", "surrogateescape"), "-d"
    if content_type.partition(";")[0].strip() == JSON_TYPE and event:
        _check_json(event, source)
    return event


def _check_json(event: bytes, source: str) -> None:
    hint = "" if source != "-d" else "; a text needs double quotes inside single ones: -d '\"text\"'"
    try:
        json.loads(event)
    except UnicodeDecodeError as error:
        raise CliError(f"{source}: the event is not UTF-8 (byte {error.start}): send it with --type") from error
    except json.JSONDecodeError as error:
        around = escape(error.doc[max(0, error.pos - EXCERPT // 2) : error.pos + EXCERPT // 2]).replace("\n", " ")
        place = f"line {error.lineno}, column {error.colno}"
        raise CliError(f"{source}: the event is not JSON: {error.msg} at {place}, near {around!r}{hint}") from error
    except RecursionError as error:
        raise CliError(f"{source}: the event is nested too deeply") from error


def _embedded(body: bytes, kind: str) -> dict[str, Any]:
    if kind.partition(";")[0].strip() == JSON_TYPE:
        return {"result": json.loads(body) if body else None}
    try:
        return {"result": body.decode()}
    except UnicodeDecodeError:
        return {"result_base64": base64.b64encode(body).decode()}


def _accepted(grid: Grid, reply: Reply) -> None:
    if grid.out.as_json:
        grid.out.json(reply.json())
        return
    grid.out.line(reply.invocation)
    grid.out.note(f"accepted; its result: nanogrid invocations result {reply.invocation} --wait 60")


def _still_running(grid: Grid, id: str) -> None:
    if grid.out.as_json:
        grid.out.json({"id": id, "url": f"/v1/invocations/{id}", "status": "PROCESSING"})
    raise CliError(f"invocation {id} goes on; its result: nanogrid invocations result {id} --wait 60", STILL_RUNNING)
