"""`nanogrid demo`: a grid of its own, every language on real input, sync and async."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from nanogrid.cli.client import Client, Refused, at
from nanogrid.cli.output import plain
from nanogrid.cli.project import read_project, send

START_S = 180.0


def examples_dir() -> Path:
    """The example projects: inside the installed package, or at the top of the source tree."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "examples"
    return inside if inside.is_dir() else package.parent.parent / "examples"


@click.command()
@click.option("--isolation", type=click.Choice(["auto", "docker", "bwrap", "process"]), default="auto")
def demo(isolation: str) -> None:
    """Starts a grid, deploys the examples, calls each one sync and async, and stops the grid."""
    with tempfile.TemporaryDirectory(prefix="nanogrid-demo-") as data:
        command = [sys.executable, "-m", "nanogrid.cli", "up", "--port", "0", "--data", f"{data}/grid", "--no-profile"]
        with (Path(data) / "log").open("w") as log:
            grid = subprocess.Popen([*command, "--isolation", isolation], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            told = wait_ready(grid, Path(data) / "log")
            click.secho(f"grid is up at {told['URL']}, isolation {told['isolation']}", bold=True)
            os.environ["NANOGRID_URL"], os.environ["NANOGRID_API_KEY"] = told["URL"], told["key"]
            projects = sorted(path.parent for path in examples_dir().glob("*/nanogrid.toml"))
            failed = [project.name for project in projects if not show_one(Client(), project)]
        finally:
            grid.send_signal(signal.SIGTERM)
            try:
                grid.wait(timeout=60)
            except subprocess.TimeoutExpired:
                grid.kill()
    if failed or not projects:
        raise click.ClickException(f"failed: {', '.join(failed) or 'there are no examples'}")
    click.secho(f"\n{len(projects)} functions ran. Next: nanogrid up, then nanogrid deploy examples/...", bold=True)


def wait_ready(grid: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """What `up` prints until it is ready: URL, key and isolation."""
    told: dict[str, str] = {}
    until = time.monotonic() + START_S
    assert grid.stdout is not None
    for line in grid.stdout:
        name, _, value = line.strip().partition(" ")
        told[name] = value
        if name == "ready":
            return told
        if time.monotonic() > until:
            break
    raise click.ClickException(f"the grid did not start:\n{log.read_text()[-3000:]}")


def show_one(client: Client, project: Path) -> bool:
    """Deploys one example and calls it both ways; False when anything of it failed."""
    config, code = read_project(project)
    name = config["name"]
    click.secho(f"\n== {name} ({config['runtime']})", bold=True)
    event = (project / "event.json").read_bytes()
    try:
        send(client, config, code, lambda line: click.echo(plain(line)))
        started = time.monotonic()
        answer = client.open(
            "POST", at("v1", "functions", name, "invocations"), event, {"Content-Type": "application/json"}
        )
        result = answer.read()
        took_ms = (time.monotonic() - started) * 1000
        click.echo(f"sync   {answer.status} in {took_ms:.1f} ms: {shorten(result)}")
        again = run_async(client, name, event)
    except Refused as error:
        click.secho(f"failed: {error.message}", fg="red")
        for line in error.problem.get("log", [])[-20:]:
            click.echo(f"  {plain(line)}")
        return False
    return answer.status == 200 and again


def run_async(client: Client, name: str, event: bytes) -> bool:
    """One asynchronous call, its states shown as they come."""
    headers = {"Content-Type": "application/json", "Prefer": "respond-async"}
    answer = client.open("POST", at("v1", "functions", name, "invocations"), event, headers)
    told = json.loads(answer.read())
    states: list[str] = []
    for line in client.lines(at("v1", "invocations", told["id"], "events")):
        if line.startswith("data: "):
            item = json.loads(line[6:])
            states.append(item["status"] if item["kind"] == "status" else item["kind"])
    shown = re.sub(r"(progress|partial)( -> \1)+", r"\1 ...", " -> ".join(states))
    result = client.open("GET", at("v1", "invocations", told["id"], "result")).read()
    click.echo(f"async  {shown}: {shorten(result)}")
    return states[-1:] == ["SUCCESS"]


def shorten(data: bytes) -> str:
    """A result on one line."""
    text = plain(data.decode("utf-8", "replace"))
    return text if len(text) <= 160 else text[:157] + "..."
