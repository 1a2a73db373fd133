"""`nanogrid functions`, `versions`, `rollback` and `alias`."""

from __future__ import annotations

from typing import Any

import click

from nanogrid.cli.client import segment
from nanogrid.cli.errors import CliError
from nanogrid.cli.output import Cell, Columns
from nanogrid.cli.shared import Grid, confirm, with_grid, yes_option
from nanogrid.cli.times import age, moment, size

NO_FUNCTIONS = "no functions yet: write one with `nanogrid init hello`, then `nanogrid deploy hello`"


@click.group()
def functions() -> None:
    """Lists, describes and deletes functions."""


@functions.command("ls")
@with_grid
def functions_ls(grid: Grid) -> None:
    """Lists all functions."""
    found = grid.client.get("/v1/functions")["functions"]
    columns: Columns = {
        "NAME": "name",
        "RUNTIME": "runtime",
        "LATEST": "latest",
        "VERSIONS": "versions",
        "ALIASES": lambda f: ", ".join(f["aliases"]) or None,
        "CODE": lambda f: size(f["code_size"]),
        "UPDATED": lambda f: age(f["updated_at"]),
    }
    grid.out.table(found, columns, NO_FUNCTIONS)


@functions.command("describe")
@click.argument("name")
@with_grid
def functions_describe(grid: Grid, name: str) -> None:
    """Shows a function: its config, code, versions and aliases."""
    function = grid.client.get(f"/v1/functions/{segment(name)}")
    config = function["config"]
    columns: Columns = {
        "NAME": "name",
        "DESCRIPTION": lambda f: config.get("description"),
        "RUNTIME": "runtime",
        "HANDLER": lambda f: config.get("handler"),
        "LATEST": "latest",
        "VERSIONS": "versions",
        "CODE": lambda f: f"{size(f['code_size'])}, sha256 {f['code_sha256']}",
        "URL": "url",
        "CREATED": lambda f: moment(f["created_at"]),
        "UPDATED": lambda f: moment(f["updated_at"]),
    }
    shown = ("name", "description", "runtime", "handler")
    more: Columns = {key: _always(_plain(value)) for key, value in config.items() if key not in shown}
    aliases: Columns = {f"alias {name}": _always(target_text(to)) for name, to in function["aliases"].items()}
    grid.out.fields(function, {**columns, **more, **aliases})


def _always(value: object) -> Cell:
    return lambda row: value


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value


@functions.command("delete")
@click.argument("name")
@yes_option
@with_grid
def functions_delete(grid: Grid, name: str, yes: bool) -> None:
    """Deletes a function; what runs goes on to its end."""
    confirm(f"Delete function {name!r} with all its versions?", yes)
    grid.client.send("DELETE", f"/v1/functions/{segment(name)}")
    grid.out.done(f"deleted {name}", {"name": name, "deleted": True})


@click.group()
def versions() -> None:
    """Lists the versions of a function."""


@versions.command("ls")
@click.argument("name")
@with_grid
def versions_ls(grid: Grid, name: str) -> None:
    """Lists the versions of a function, newest first."""
    found = grid.client.get(f"/v1/functions/{segment(name)}/versions")["versions"]
    columns: Columns = {
        "VERSION": "version",
        "LATEST": lambda v: "$LATEST" if v["latest"] else "",
        "RUNTIME": lambda v: v["config"]["runtime"],
        "HANDLER": lambda v: v["config"].get("handler"),
        "CODE": lambda v: size(v["code_size"]),
        "SHA256": lambda v: v["code_sha256"][:12],
        "CREATED": lambda v: moment(v["created_at"]),
    }
    grid.out.table(found, columns, f"{name} has no versions")


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1), required=False)
@with_grid
def rollback(grid: Grid, name: str, version: int | None) -> None:
    """Makes an older version $LATEST again.

    Without VERSION it is the one before the present $LATEST. Aliases stay where they are.
    """
    path = f"/v1/functions/{segment(name)}"
    if version is None:
        found = grid.client.get(f"{path}/versions")["versions"]
        latest = next(v["version"] for v in found if v["latest"])
        version = max((v["version"] for v in found if v["version"] < latest), default=None)
        if version is None:
            raise CliError(f"{name} has no version before {latest}")
    function = grid.client.send("POST", f"{path}/versions/{version}:rollback")
    grid.out.done(f"{name}: $LATEST is version {version}", function)


@click.group()
def alias() -> None:
    """Names versions, and shares calls between two."""


@alias.command("set")
@click.argument("name")
@click.argument("alias_name", metavar="ALIAS")
@click.argument("version", type=click.IntRange(min=1))
@click.option(
    "--weight", "weights", multiple=True, metavar="V=SHARE", help="Sends a share (0 to 1) to version V, such as 3=0.1."
)
@with_grid
def alias_set(grid: Grid, name: str, alias_name: str, version: int, weights: tuple[str, ...]) -> None:
    """Creates or moves an alias."""
    target = {"version": version, "weights": _weights(weights)}
    function = grid.client.send("PUT", f"/v1/functions/{segment(name)}/aliases/{segment(alias_name)}", target)
    grid.out.done(f"{name}:{alias_name} is {target_text(target)}", function)


def _weights(pairs: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        version, _, share = pair.partition("=")
        try:
            found[str(int(version))] = float(share)
        except ValueError:
            raise click.BadParameter(f"{pair!r} is not V=SHARE, such as 3=0.1", param_hint="--weight") from None
    return found


def target_text(target: dict[str, Any]) -> str:
    """Where an alias points, in words."""
    weights = target.get("weights") or {}
    shares = "".join(f", {share:.0%} to version {version}" for version, share in weights.items())
    return f"version {target['version']}{shares}"


@alias.command("ls")
@click.argument("name")
@with_grid
def alias_ls(grid: Grid, name: str) -> None:
    """Lists the aliases of a function."""
    aliases = grid.client.get(f"/v1/functions/{segment(name)}")["aliases"]
    rows = [{"alias": alias_name, **target} for alias_name, target in aliases.items()]
    columns: Columns = {"ALIAS": "alias", "TARGET": lambda row: target_text(dict(row))}
    grid.out.table(rows, columns, f"{name} has no aliases: set one with `nanogrid alias set {name} live 1`")


@alias.command("rm")
@click.argument("name")
@click.argument("alias_name", metavar="ALIAS")
@with_grid
def alias_rm(grid: Grid, name: str, alias_name: str) -> None:
    """Removes an alias; the version stays."""
    grid.client.send("DELETE", f"/v1/functions/{segment(name)}/aliases/{segment(alias_name)}")
    grid.out.done(f"removed {name}:{alias_name}", {"name": name, "alias": alias_name, "deleted": True})
