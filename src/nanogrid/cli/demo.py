"""`nanogrid demo`: a grid of its own, functions in four languages and a shell script, sync and async."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from nanogrid.cli.client import Client, Reply, segment
from nanogrid.cli.errors import FUNCTION_FAILED, PLATFORM_FAILED, CliError
from nanogrid.cli.invoke import JSON_TYPE, SYNC_WAIT_S, call, read_event, result_of
from nanogrid.cli.live import TERMINAL, progress_text, wait_for
from nanogrid.cli.output import STYLES, escape
from nanogrid.cli.profile import Profile
from nanogrid.cli.times import span_ms

START_S: Final = 900.0
"""The first start with Docker makes the images of the sandboxes."""
QUIET_S: Final = 5.0
STOP_S: Final = 60.0
LINES: Final = 30
WIDTH: Final = 96
ORDER: Final = ("python", "node", "go", "cpp", "command")
START: Final = "from nanogrid.cli.main import main; main()"


@click.command()
@click.option("--isolation", default="auto", show_default=True, help="auto, docker, bwrap or process.")
@click.option(
    "--examples", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of projects to show."
)
def demo(isolation: str, examples: Path | None) -> int:
    """Shows everything once: a grid, four languages, sync and async.

    Starts a grid in a temporary folder on a free port, deploys the examples, invokes each on its event.json
    synchronously and asynchronously with its state changes, and stops the grid. Exit status 1 when one fails.
    """
    projects = find_projects(examples)
    failed = []
    with tempfile.TemporaryDirectory(prefix="nanogrid-demo-", ignore_cleanup_errors=True) as folder:
        # Sandboxes of another user must be able to pass through.
        Path(folder).chmod(0o711)
        with own_grid(Path(folder), isolation) as (client, level):
            say(f"grid ready, isolation {level}\n")
            for project in projects:
                try:
                    show(client, project)
                except CliError as error:
                    failed.append(project.name)
                    say(click.style(f"   failed   {escape(error.message)}\n", fg="red"))
    if failed:
        say(f"failed: {', '.join(failed)}")
        return FUNCTION_FAILED
    say(f"all {len(projects)} functions answered, sync and async. Your turn: nanogrid up")
    return 0


def say(text: str, newline: bool = True) -> None:
    """A part of the show, at once."""
    click.echo(text, nl=newline)


def find_projects(examples: Path | None) -> list[Path]:
    """The example projects, in the order of the languages.

    Raises:
        CliError: there are none.
    """
    package = Path(__file__).resolve().parents[1]
    places = [examples] if examples else [package / "examples", package.parents[1] / "examples"]
    for place in places:
        if place.is_dir():
            found = [path.parent for path in place.glob("*/nanogrid.toml") if (path.parent / "event.json").is_file()]
            if found:
                return sorted(found, key=_rank)
    raise CliError(
        f"no examples at {' or '.join(map(str, places))}: each is a folder with nanogrid.toml and event.json"
    )


def _rank(project: Path) -> tuple[int, str]:
    language = project.name.partition("-")[0]
    return (ORDER.index(language) if language in ORDER else len(ORDER), project.name)


@contextmanager
def own_grid(folder: Path, isolation: str) -> Iterator[tuple[Client, str]]:
    """A grid in a process of its own, below `folder`; stopped at the end.

    Yields its client and isolation level.

    Raises:
        CliError: it does not start; with the end of what it said.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("NANOGRID_URL", "NANOGRID_API_KEY")}
    # Its profile must not take the place of the user's own.
    environment["XDG_CONFIG_HOME"] = str(folder / "config")
    log = folder / "grid.log"
    command = [
        sys.executable,
        "-c",
        START,
        "up",
        "--port",
        "0",
        "--data",
        str(folder / "data"),
        "--isolation",
        isolation,
    ]
    say("starting a grid in a temporary folder")
    with log.open("wb") as out:
        grid = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        profile = _await_profile(grid, folder / "config" / "nanogrid" / "profile.json", log)
        client = Client(profile)
        yield client, str(client.get("/readyz")["isolation"])
    finally:
        _stop(grid)


def _await_profile(grid: subprocess.Popen[bytes], file: Path, log: Path) -> Profile:
    started, told = time.monotonic(), False
    while not file.is_file():
        waited = time.monotonic() - started
        if grid.poll() is not None or waited > START_S:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise CliError(f"the grid did not start; it said:\n{end}", PLATFORM_FAILED)
        if waited > QUIET_S and not told:
            say("  still starting: with Docker, the first start on a machine makes the sandboxes' images")
            told = True
        time.sleep(0.1)
    saved = json.loads(file.read_text())
    return Profile(saved["url"], saved["key"])


def _stop(grid: subprocess.Popen[bytes]) -> None:
    if grid.poll() is not None:
        return
    grid.send_signal(signal.SIGTERM)
    try:
        grid.wait(STOP_S)
    except subprocess.TimeoutExpired:
        grid.kill()
        grid.wait()


def show(client: Client, project: Path) -> None:
    """Deploys a project, then invokes it both ways.

    Raises:
        CliError: any of it failed.
    """
    name = _deploy(client, project)
    event = read_event(f"@{project / 'event.json'}")
    started = time.monotonic()
    reply = call(client, name, event, {"Content-Type": JSON_TYPE}, SYNC_WAIT_S)
    if reply.status == 202:
        wait_for(client, reply.invocation)
        reply = result_of(client, reply.invocation)
    say(f"   sync     {span_ms((time.monotonic() - started) * 1000)}")
    _show_result(reply)
    accepted = call(client, name, event, {"Content-Type": JSON_TYPE}, 0.0)
    _show_states(client, accepted.invocation)
    again = result_of(client, accepted.invocation)
    if again.body == reply.body:
        say("            the same result")
    else:
        _show_result(again, lines=3)
    say("")


def _deploy(client: Client, project: Path) -> str:
    from nanogrid.cli.deploy import publish
    from nanogrid.cli.source import check, read_source

    with read_source(project, {}) as source:
        check(source)
        config = source.config
        say(click.style(f"{project.name}", bold=True) + f" ({config['runtime']}): {config.get('description', '')}")
        started = time.monotonic()
        lines: list[str] = []
        try:
            function = publish(client, source, lines.append)
        except CliError:
            for line in lines[-20:]:
                say(f"            {escape(line)}")
            raise
    say(f"   deploy   version {function['version']} in {span_ms((time.monotonic() - started) * 1000)}")
    return str(function["name"])


def _show_states(client: Client, id: str) -> None:
    """The state changes of an invocation, on one line, as they come."""
    say("   async    ", newline=False)
    first, last = True, 0.0
    began: float | None = None
    reports: list[str] = []
    pieces = 0
    for event in client.events(f"/v1/invocations/{segment(id)}/events"):
        began, last = began or float(event.data["at"]), float(event.data["at"])
        if event.kind == "status":
            status = str(event.data["status"])
            say(("" if first else " → ") + click.style(status, fg=STYLES.get(status)), newline=False)
            first = False
            if status in TERMINAL:
                break
        elif event.kind == "progress":
            reports.append(progress_text(event.data.get("data")))
        else:
            pieces += 1
    say(f"  {span_ms((last - (began or last)) * 1000)}")
    if reports:
        say(f"            progress: {_some(reports)}")
    if pieces:
        say(f"            streamed {pieces} pieces of output on the way")


def _some(reports: list[str]) -> str:
    shown = reports if len(reports) <= 4 else [*reports[:2], "...", reports[-1]]
    return ", ".join(shown)[:WIDTH]


def _show_result(reply: Reply, lines: int = LINES) -> None:
    """A result, pretty and cut to a readable size."""
    text = reply.body.decode("utf-8", "replace")
    value: Any = text
    if reply.headers.get("content-type", "").startswith(JSON_TYPE):
        value = json.loads(text or "null")
    if not isinstance(value, str):
        value = pretty(value)
    shown = escape(value).splitlines()
    for line in shown[:lines]:
        say(f"            {line[:WIDTH] + ('...' if len(line) > WIDTH else '')}")
    if len(shown) > lines:
        say(f"            ... ({len(shown) - lines} more lines)")


def pretty(value: Any, indent: int = 0) -> str:
    """JSON with whatever fits kept on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= WIDTH or not isinstance(value, dict | list):
        return flat
    space = " " * (indent + 2)
    if isinstance(value, dict):
        inside = [f"{space}{json.dumps(k, ensure_ascii=False)}: {pretty(v, indent + 2)}" for k, v in value.items()]
        return "{\n" + ",\n".join(inside) + "\n" + " " * indent + "}"
    inside = [space + pretty(item, indent + 2) for item in value]
    return "[\n" + ",\n".join(inside) + "\n" + " " * indent + "]"
