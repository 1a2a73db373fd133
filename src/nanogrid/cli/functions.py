"""Functions, their versions and aliases."""

from __future__ import annotations

import click

from nanogrid.cli.client import Client, at
from nanogrid.cli.output import note, output_option, show, when


@click.group()
def functions() -> None:
    """Functions: list, describe, delete."""


@functions.command("ls")
@output_option
def functions_ls(output: str) -> None:
    """All functions."""
    columns = (
        ("NAME", lambda f: f["name"]),
        ("RUNTIME", lambda f: f["runtime"]),
        ("LATEST", lambda f: f["latest"]),
        ("VERSIONS", lambda f: f["versions"]),
        ("ALIASES", lambda f: ", ".join(f["aliases"])),
        ("UPDATED", lambda f: when(f["updated_at"])),
    )
    show(Client().call("GET", "/v1/functions")["functions"], output, columns, "no functions yet: nanogrid deploy")


@functions.command("describe")
@click.argument("name")
def functions_describe(name: str) -> None:
    """One function, with its config."""
    show(Client().call("GET", at("v1", "functions", name)), "json")


@functions.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def functions_delete(name: str, yes: bool) -> None:
    """Deletes a function with all its versions and aliases."""
    if not yes:
        click.confirm(f"Delete {name} with all its versions?", abort=True, err=True)
    Client().call("DELETE", at("v1", "functions", name))
    note(f"{name} is deleted")


@click.group()
def versions() -> None:
    """Versions of a function."""


@versions.command("ls")
@click.argument("name")
@output_option
def versions_ls(name: str, output: str) -> None:
    """All versions, newest first."""
    columns = (
        ("VERSION", lambda v: v["version"]),
        ("LATEST", lambda v: "*" if v["latest"] else ""),
        ("RUNTIME", lambda v: v["config"]["runtime"]),
        ("SIZE", lambda v: v["code_size"]),
        ("CODE", lambda v: v["code_sha256"][:12]),
        ("CREATED", lambda v: when(v["created_at"])),
    )
    show(Client().call("GET", at("v1", "functions", name, "versions"))["versions"], output, columns)


@click.command()
@click.argument("name")
@click.argument("version", type=int)
def rollback(name: str, version: int) -> None:
    """Makes an older VERSION of NAME the one that is called."""
    Client().call("POST", f"{at('v1', 'functions', name, 'versions', str(version))}:rollback")
    note(f"{name} is at version {version} again")


@click.group()
def alias() -> None:
    """Aliases: names that point to versions."""


@alias.command("set")
@click.argument("name")
@click.argument("alias_name", metavar="ALIAS")
@click.argument("version", type=int)
@click.option("--weight", multiple=True, metavar="VERSION=SHARE", help="Send a share (0 to 1) to another version.")
def alias_set(name: str, alias_name: str, version: int, weight: tuple[str, ...]) -> None:
    """Points ALIAS of NAME to VERSION."""
    weights: dict[str, float] = {}
    for pair in weight:
        number, _, share = pair.partition("=")
        try:
            weights[str(int(number))] = float(share)
        except ValueError as error:
            raise click.UsageError(f"--weight {pair}: write it as 3=0.1") from error
    Client().call("PUT", at("v1", "functions", name, "aliases", alias_name), {"version": version, "weights": weights})
    note(f"{name}:{alias_name} points to version {version}")


@alias.command("ls")
@click.argument("name")
@output_option
def alias_ls(name: str, output: str) -> None:
    """The aliases of a function."""
    found = Client().call("GET", at("v1", "functions", name))["aliases"]
    rows = [{"alias": key, **value} for key, value in found.items()]
    columns = (
        ("ALIAS", lambda a: a["alias"]),
        ("VERSION", lambda a: a["version"]),
        ("WEIGHTS", lambda a: ", ".join(f"{v}={w:g}" for v, w in a.get("weights", {}).items())),
    )
    show(rows, output, columns, "no aliases")


@alias.command("rm")
@click.argument("name")
@click.argument("alias_name", metavar="ALIAS")
def alias_rm(name: str, alias_name: str) -> None:
    """Removes an alias."""
    Client().call("DELETE", at("v1", "functions", name, "aliases", alias_name))
    note(f"{name}:{alias_name} is gone")
