"""`nanogrid up`, `workers` and `scaling`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nanogrid.cli.client import segment
from nanogrid.cli.output import Columns
from nanogrid.cli.shared import Grid, with_grid
from nanogrid.cli.times import age

WARNINGS = {
    "process": "functions are NOT isolated from this machine: for development with your own code only",
}


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the API; 0 takes a free one [default: 8080].")
@click.option("--host", help="Address to listen on [default: 127.0.0.1].")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), help="Folder that holds everything [default: ./data]."
)
@click.option("--isolation", help="auto, docker, bwrap or process [default: auto].")
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes [default: 2].")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings file with a [grid] table.")
@click.option("--no-profile", is_flag=True, help="Do not tell the other commands of this grid.")
def up(
    port: int | None,
    host: str | None,
    data: Path | None,
    isolation: str | None,
    workers: int | None,
    config: Path | None,
    no_profile: bool,
) -> None:
    """Starts a grid on this machine.

    Needs no server and no root. Ctrl-C drains: what runs may finish, and the next `up` on the same folder goes
    on with everything that was accepted. A second Ctrl-C ends it at once. All settings: docs/settings.md.
    """
    from nanogrid.settings import load
    from nanogrid.supervisor import up as start

    given = {
        "port": port,
        "host": host,
        "data": None if data is None else str(data),
        "isolation": isolation,
        "workers": workers,
    }
    settings = load(given, file=config)
    folder = Path(settings.data).resolve()
    start(settings, lambda url, key, level: announce(url, key, level, folder, not no_profile))
    click.echo("stopped; everything accepted is in the data folder", err=True)


def announce(url: str, key: str, level: str, data: Path, tell: bool) -> None:
    """Says that the grid is ready, a word and its value a line; `tell` writes the profile for the other commands."""
    from nanogrid.cli import profile

    lines = [f"URL {url}", f"key {key}", f"isolation {level}", f"data {data}"]
    if tell:
        try:
            lines.append(f"profile {profile.write(url, key, data)}")
        except OSError as error:
            click.echo(f"no profile written ({error.strerror}): set NANOGRID_URL and NANOGRID_API_KEY", err=True)
    click.echo("\n".join([*lines, "ready"]))
    if level in WARNINGS:
        click.echo(f"warning: {WARNINGS[level]}", err=True)
    click.echo("Ctrl-C stops it; nothing that was accepted is lost", err=True)
    sys.stdout.flush()


@click.group()
def workers() -> None:
    """Lists and drains workers."""


@workers.command("ls")
@with_grid
def workers_ls(grid: Grid) -> None:
    """Lists the workers that live, with what they carry."""
    columns: Columns = {
        "ID": "id",
        "STATE": lambda w: "draining" if w.get("draining") else "ready",
        "RUNNING": lambda w: f"{w.get('running', 0)}/{w['capacity']}",
        "SANDBOXES": lambda w: w.get("sandboxes", 0),
        "ISOLATION": "isolation",
        "ZONE": lambda w: w.get("zone", "local"),
        "UP": lambda w: age(w.get("started_at")),
    }
    grid.out.table(grid.client.get("/v1/workers")["workers"], columns, "no worker lives: see the log of the grid")


@workers.command("drain")
@click.argument("id")
@with_grid
def workers_drain(grid: Grid, id: str) -> None:
    """Lets a worker finish what it has, then stop."""
    grid.out.done(f"draining {id}", grid.client.send("POST", f"/v1/workers/{segment(id)}:drain"))


@click.command()
@with_grid
def scaling(grid: Grid) -> None:
    """Shows what scaling looks at: the queue and the workers."""
    columns: Columns = {
        "WAITING": "visible",
        "IN FLIGHT": "in_flight",
        "WORKERS": "workers",
        "RUNNING": lambda s: f"{s['running']} of {s['capacity']}",
    }
    grid.out.fields(grid.client.get("/v1/scaling"), columns)
