"""`invoke`, and everything about invocations that were made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from nanogrid.cli.client import FUNCTION_FAILED, Client, Refused, at, refusal
from nanogrid.cli.output import note, output_option, plain, show, when

POLL_S = 30
COLUMNS = (
    ("ID", lambda r: r["id"]),
    ("FUNCTION", lambda r: f"{r['function']}:{r['version']}"),
    ("STATUS", lambda r: r["status"]),
    ("TRIGGER", lambda r: r["trigger"]),
    ("CREATED", lambda r: when(r["created_at"])),
    ("MS", lambda r: (r.get("usage") or {}).get("run_ms")),
    ("FAILURE", lambda r: (r.get("failure") or {}).get("type")),
)


def read_event(data: str | None) -> bytes:
    """The event of `-d`: JSON, `@file` or `-` for stdin; checked before it is sent."""
    if data is None:
        return b"null"
    if data == "-":
        raw = sys.stdin.buffer.read()
    elif data.startswith("@"):
        try:
            raw = Path(data[1:]).read_bytes()
        except OSError as error:
            raise click.UsageError(f"-d {data}: {error.strerror}") from error
    else:
        raw = data.encode()
    try:
        json.loads(raw)
    except (ValueError, RecursionError) as error:
        hint = "" if data[:1] in "@-" else " (quote text twice, as in -d '\"text\"')"
        raise click.UsageError(f"-d: the event is not JSON: {error}{hint}") from error
    return raw


def print_result(data: bytes) -> None:
    """The result and nothing else, on stdout."""
    sys.stdout.buffer.write(data)
    if sys.stdout.isatty() or not data.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.flush()


def explain(problem: dict[str, Any]) -> None:
    """A function's failure, on stderr."""
    failure = problem.get("failure") or {}
    note(f"{problem.get('code')}: {plain(failure.get('type'))}: {plain(failure.get('message'))}")
    for line in failure.get("stack", []):
        note(f"  {plain(line)}")
    note(f"logs: nanogrid invocations logs {problem.get('invocation')}")


@click.command()
@click.argument("name")
@click.option("-d", "--data", help="The event: JSON, @file, or - for stdin.")
@click.option("--async", "asynchronous", is_flag=True, help="Do not wait: print the invocation's id.")
@click.option("--wait", type=float, help="Seconds to wait at most; then print the id.")
@click.option("--follow", is_flag=True, help="Show states, progress and output on stderr while it goes on.")
@click.option("--idempotency-key", help="Calls with the same key are one invocation.")
@output_option
def invoke(
    name: str, data: str | None, asynchronous: bool, wait: float | None, follow: bool, idempotency_key: str | None,
    output: str,
) -> None:  # fmt: skip
    """Invokes NAME (or NAME:QUALIFIER) and prints its result."""
    event, client = read_event(data), Client()
    prefer = "respond-async" if asynchronous or follow else f"wait={wait if wait is not None else 55:g}"
    headers = {"Content-Type": "application/json", "Prefer": prefer}
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    answer = client.open("POST", at("v1", "functions", name, "invocations"), event, headers)
    body = answer.read()
    if answer.status == 200:
        print_result(body)
        return
    if answer.status != 202:
        finish(refusal(answer.status, body))
    told = json.loads(body)
    if asynchronous or (wait is not None and not follow):
        click.echo(json.dumps(told) if output == "json" else told["id"])
        return
    if follow:
        watch(client, told["id"])
    await_result(client, told["id"])


def finish(refused: Refused) -> None:
    """Shows a refusal and ends: a function's failure with its stack, anything else as an error."""
    if "failure" in refused.problem:
        explain(refused.problem)
        raise click.exceptions.Exit(FUNCTION_FAILED)
    raise refused


def await_result(client: Client, id: str) -> None:
    """Waits for as long as it takes, then prints the result."""
    while True:
        record = client.call("GET", f"{at('v1', 'invocations', id)}?wait={POLL_S}")
        if record["status"] in ("SUCCESS", "FAILED"):
            break
    answer = client.open("GET", at("v1", "invocations", id, "result"))
    body = answer.read()
    if answer.status >= 400:
        finish(refusal(answer.status, body))
    print_result(body)


def watch(client: Client, id: str) -> None:
    """Shows the live events of an invocation until its end."""
    for line in client.lines(at("v1", "invocations", id, "events")):
        if not line.startswith("data: "):
            continue
        event = json.loads(line[6:])
        if event["kind"] == "status":
            note(f"{event['status']}" + (f" (attempt {event['attempt']})" if event.get("attempt", 0) > 1 else ""))
        elif event["kind"] == "progress":
            note(f"progress: {plain(json.dumps(event.get('data')))}")
        else:
            note(f"partial: {plain(event.get('data'))}")


@click.group()
def invocations() -> None:
    """Invocations: list, look at, cancel, replay."""


@invocations.command("ls")
@click.option("--function", help="Only of this function.")
@click.option("--status", help="PENDING, PROCESSING, SUCCESS or FAILED.")
@click.option("--limit", type=int, default=20, show_default=True)
@output_option
def ls(function: str | None, status: str | None, limit: int, output: str) -> None:
    """The newest invocations."""
    from urllib.parse import urlencode

    query = urlencode({k: v for k, v in (("function", function), ("status", status), ("limit", limit)) if v})
    found = Client().call("GET", f"/v1/invocations?{query}")["invocations"]
    show(found, output, COLUMNS, "no invocations yet: nanogrid invoke NAME")


@invocations.command()
@click.argument("id")
@click.option("--wait", type=float, default=0, help="Seconds to wait for its end.")
def get(id: str, wait: float) -> None:
    """One record."""
    show(Client().call("GET", f"{at('v1', 'invocations', id)}?wait={wait:g}"), "json")


@invocations.command()
@click.argument("id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the invocation ends.")
def logs(id: str, follow: bool) -> None:
    """What an invocation printed."""
    for line in Client().lines(at("v1", "invocations", id, "logs") + ("?follow" if follow else "")):
        click.echo("".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in line))


@invocations.command()
@click.argument("id")
def result(id: str) -> None:
    """The result of a finished invocation."""
    await_result(Client(), id)


@invocations.command()
@click.argument("id")
def cancel(id: str) -> None:
    """Ends an invocation."""
    record = Client().call("POST", f"{at('v1', 'invocations', id)}:cancel")
    note(f"{id} is {record['status']}" + ("" if record["status"] in ("SUCCESS", "FAILED") else ", a cancel was asked"))


@invocations.command()
@click.argument("id")
def replay(id: str) -> None:
    """Runs the same event again; prints the new id."""
    click.echo(Client().call("POST", f"{at('v1', 'invocations', id)}:replay")["id"])


@click.command("logs")
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with new invocations.")
@click.option("--limit", type=int, default=10, show_default=True, help="How many past invocations.")
def function_logs(name: str, follow: bool, limit: int) -> None:
    """What the invocations of function NAME printed."""
    client = Client()
    past = client.call("GET", f"/v1/invocations?function={name}&limit={limit}")["invocations"]
    for record in reversed(past):
        _print_log(client, record["id"])
    if follow:
        for line in client.lines(f"/v1/events?function={name}"):
            if line.startswith("data: ") and (event := json.loads(line[6:])).get("status") in ("SUCCESS", "FAILED"):
                _print_log(client, event["id"])


def _print_log(client: Client, id: str) -> None:
    for line in client.lines(at("v1", "invocations", id, "logs")):
        click.echo(f"{id[-12:]}  " + plain(line))


@click.group()
def dlq() -> None:
    """Dead letters: invocations that ran out of attempts."""


@dlq.command("ls")
@output_option
def dlq_ls(output: str) -> None:
    """All dead letters."""
    show(Client().call("GET", "/v1/dead-letters")["dead_letters"], output, COLUMNS, "no dead letters")


@dlq.command("redrive")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def dlq_redrive(ids: tuple[str, ...], everything: bool) -> None:
    """Runs dead letters again; prints the new ids."""
    client = Client()
    for id in _dead(client, ids, everything):
        click.echo(client.call("POST", f"{at('v1', 'dead-letters', id)}:redrive")["id"])


@dlq.command("purge")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
def dlq_purge(ids: tuple[str, ...], everything: bool) -> None:
    """Forgets dead letters."""
    client = Client()
    for id in _dead(client, ids, everything):
        client.call("DELETE", at("v1", "dead-letters", id))


def _dead(client: Client, ids: tuple[str, ...], everything: bool) -> list[str]:
    if not ids and not everything:
        raise click.UsageError("say which: some ids, or --all")
    if not everything:
        return list(ids)
    return [record["id"] for record in client.call("GET", "/v1/dead-letters?limit=1000")["dead_letters"]]
