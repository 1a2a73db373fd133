"""`nanogrid doctor`: what this machine has, and one line on how to get what it lacks."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from nanogrid.cli.errors import PLATFORM_FAILED, CliError
from nanogrid.cli.output import Columns
from nanogrid.cli.shared import Grid, with_grid

DISK_GIB: Final = 2.0
LEVELS: Final = ("docker", "bwrap", "process")
OPTIONAL: Final = "-"
TOOLCHAINS: Final = "pip install 'nanogrid[toolchains]'"


class Finding(NamedTuple):
    """One check: `ok`, `warn` (something is not possible) or `fail` (a grid does not start)."""

    check: str
    state: str
    found: str
    remedy: str = OPTIONAL


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="The grid's folder, for the disk [default: as `up`].",
)
@with_grid
def doctor(grid: Grid, data: Path | None) -> None:
    """Checks what this machine has, and says how to get the rest.

    Starts a real sandbox at every isolation level. Exit status 3 when a grid could not start here.
    """
    columns: Columns = {"CHECK": "check", "": "state", "FOUND": "found", "REMEDY": "remedy"}
    findings = list(examine(grid, data))
    grid.out.table([finding._asdict() for finding in findings], columns, "")
    if any(finding.state == "fail" for finding in findings):
        raise CliError("a grid cannot start here: see the lines marked `fail`", PLATFORM_FAILED)


def examine(grid: Grid, data: Path | None) -> Iterator[Finding]:
    """All checks, in the order in which they matter."""
    yield check_python()
    yield from asyncio.run(check_isolation())
    yield from check_toolchains()
    yield check_disk(data)
    yield from check_grid(grid)


def check_python() -> Finding:
    """The interpreter that runs this."""
    return Finding("Python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


async def check_isolation() -> list[Finding]:
    """Each level, with a sandbox that is really started."""
    from nanogrid.settings import load
    from nanogrid.wiring import LADDER, make_launcher

    findings = []
    with tempfile.TemporaryDirectory(prefix="nanogrid-doctor-", ignore_cleanup_errors=True) as folder:
        # Sandboxes of another user must be able to pass through.
        Path(folder).chmod(0o711)
        settings = load({"data": folder})
        for level in LEVELS:
            problem = await _problem_of(make_launcher, settings, level)
            use = "" if level in LADDER else " (only when asked for: it does not protect this machine)"
            if problem is None:
                findings.append(Finding(f"isolation {level}", "ok", f"works{use}"))
            else:
                # What is missing and how to get it are one sentence of the launcher's.
                found, _, remedy = problem.partition(": ")
                findings.append(Finding(f"isolation {level}", "warn", found, remedy or OPTIONAL))
    usable = [f for f in findings if f.state == "ok" and f.check.removeprefix("isolation ") in LADDER]
    if not usable:
        remedy = "install bubblewrap (apt-get install bubblewrap) or a Docker Engine"
        findings.append(Finding("isolation", "fail", "neither docker nor bwrap works", remedy))
    return findings


async def _problem_of(make_launcher: Callable[..., Any], settings: object, level: str) -> str | None:
    try:
        launcher = make_launcher(settings, level, "doctor")
    except Exception as error:
        return str(error) or type(error).__name__
    try:
        problem: str | None = await launcher.check()
        return problem
    except Exception as error:
        return str(error) or type(error).__name__
    finally:
        await launcher.close()


def check_toolchains() -> Iterator[Finding]:
    """What builds and starts functions of each language."""
    from nanogrid.deploy.toolchains import Toolchains

    tools = Toolchains()
    yield _tool("nodejs", tools.find("node"), "nodejs functions", TOOLCHAINS)
    yield _tool("npm", tools.find("npm"), "nodejs functions with dependencies", TOOLCHAINS)
    yield _tool("go", tools.find("go"), "go functions", TOOLCHAINS)
    yield _tool("C++", tools.find("g++") or tools.find("zig"), "cpp functions", f"{TOOLCHAINS}, or install g++")
    yield _tool(
        "cmake", tools.find("cmake"), "cpp projects with a CMakeLists.txt of their own rules", "pip install cmake"
    )


def _tool(name: str, found: Path | None, use: str, remedy: str) -> Finding:
    if found is not None:
        return Finding(name, "ok", str(found))
    return Finding(name, "warn", f"missing: no {use}", remedy)


def check_disk(data: Path | None) -> Finding:
    """Room where the grid keeps everything."""
    folder = (data or Path(os.environ.get("NANOGRID_DATA", "data"))).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    found = f"{free:.1f} GiB free at {folder}"
    if not os.access(folder, os.W_OK):
        return Finding(
            "disk", "fail", f"{folder} cannot be written", "choose another folder with `nanogrid up --data DIR`"
        )
    if free >= DISK_GIB:
        return Finding("disk", "ok", found)
    return Finding("disk", "warn" if free > 0.2 else "fail", found, "make room, or choose another folder with --data")


def check_grid(grid: Grid) -> Iterator[Finding]:
    """The profile, and the grid behind it."""
    from nanogrid.cli import profile

    try:
        known = profile.find()
    except CliError as error:
        yield Finding("profile", "warn", "no grid is known", error.message.partition(": ")[2])
        return
    source = "NANOGRID_URL" if os.environ.get("NANOGRID_URL") else str(profile.path())
    yield Finding("profile", "ok", f"{known.url} ({source})")
    try:
        ready = grid.client.get("/readyz", timeout_s=5.0)
        yield Finding("grid", "ok", f"ready, isolation {ready.get('isolation')}")
    except CliError as error:
        body = error.body or {}
        problems = body.get("problems")
        found, _, remedy = error.message.partition(": ")
        yield Finding("grid", "warn", ", ".join(problems) if problems else found, remedy or "see the log of the grid")
