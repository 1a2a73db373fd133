"""`up` starts a grid, `doctor` says what is missing."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import click

from nanogrid.cli.client import Unreachable, profile, profile_path, write_profile


@click.command()
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port; 0 takes a free one. [default: 8080]")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Folder for everything. [default: data]")
@click.option("--isolation", type=click.Choice(["auto", "docker", "bwrap", "process"]), help="[default: auto]")
@click.option("--workers", type=int, help="Worker processes. [default: 2]")
@click.option("--config", type=click.Path(path_type=Path, exists=True), help="A TOML file with a [grid] table.")
@click.option("--no-profile", is_flag=True, help="Do not tell the other commands of this grid.")
def up(
    host: str | None, port: int | None, data: Path | None, isolation: str | None, workers: int | None,
    config: Path | None, no_profile: bool,
) -> None:  # fmt: skip
    """Starts a grid on this machine, until Ctrl-C. The same data folder goes on where it stopped."""
    from nanogrid.errors import ConfigError
    from nanogrid.settings import load
    from nanogrid.supervisor import up as serve

    given = {
        "host": host,
        "port": port,
        "data": str(data) if data else None,
        "isolation": isolation,
        "workers": workers,
    }

    def ready(url: str, key: str, level: str) -> None:
        if not no_profile:
            write_profile(url, key)
        click.echo(f"URL {url}\nkey {key}\nisolation {level}\nready")
        if level == "process":
            click.echo("warning: isolation process keeps functions apart by name only; for development", err=True)
        sys.stdout.flush()

    try:
        serve(load(given, file=config), ready)
    except ConfigError as error:
        raise click.ClickException(error.detail) from error


@click.command()
def doctor() -> None:
    """Checks what this machine has, with a remedy for what it lacks. Exits 1 when no grid could start."""
    good = 0
    for name, problem in asyncio.run(_isolation()):
        good += problem is None
        _line(f"isolation {name}", problem)
    from nanogrid.deploy.toolchains import INSTALL, Toolchains

    tools = Toolchains()
    for name, why in (("node", "nodejs functions"), ("go", "go functions"), ("uv", "requirements.txt")):
        _line(name, None if tools.find(name) else f"not found, {why} need it: install it, or {INSTALL}")
    compiler = tools.find("g++") or tools.find("zig")
    _line("C++ compiler", None if compiler else f"neither g++ nor zig is found: install one, or {INSTALL}")
    free_gb = shutil.disk_usage(Path.cwd()).free >> 30
    _line("disk", None if free_gb >= 2 else f"only {free_gb} GiB are free here")
    try:
        url, _ = profile()
        _line(f"profile {profile_path()} ({url})", None)
    except Unreachable as error:
        _line("profile", error.message)
    if not good:
        raise click.exceptions.Exit(1)


async def _isolation() -> list[tuple[str, str | None]]:
    import tempfile

    from nanogrid.settings import Settings
    from nanogrid.wiring import LADDER, make_launcher

    found = []
    with tempfile.TemporaryDirectory(prefix="nanogrid-doctor-") as data:
        for level in LADDER:
            launcher = make_launcher(Settings(data=data), level, "doctor")
            try:
                found.append((level, await launcher.check()))
            finally:
                await launcher.close()
    return found


def _line(what: str, problem: str | None) -> None:
    click.echo(f"{'ok     ' if problem is None else 'missing'}  {what}" + (f": {problem}" if problem else ""))
