"""`nanogrid secret` and `nanogrid keys`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from nanogrid.cli.client import segment
from nanogrid.cli.errors import CliError
from nanogrid.cli.output import Columns
from nanogrid.cli.shared import Grid, with_grid
from nanogrid.cli.times import Span, moment

SCOPES = ("invoke", "deploy", "read", "admin")


@click.group()
def secret() -> None:
    """Stores values that functions get as environment variables."""


@secret.command("put")
@click.argument("name")
@click.option("--file", type=click.Path(path_type=Path), help="Takes the value from a file, as it is.")
@with_grid
def secret_put(grid: Grid, name: str, file: Path | None) -> None:
    """Stores or replaces a secret.

    The value comes from --file, from standard input (without its last line end), or is asked for: never from
    the command line, which other users of the machine can read. New sandboxes get it.
    """
    grid.client.send("PUT", f"/v1/secrets/{segment(name)}", {"value": _value(name, file)})
    grid.out.done(f"stored {name}", {"name": name})


def _value(name: str, file: Path | None) -> str:
    try:
        if file is not None:
            return file.read_text()
        if not sys.stdin.isatty():
            return sys.stdin.read().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise CliError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CliError(f"the value of {name} is not text: encode it first, such as with base64") from error
    value: str = click.prompt(f"Value of {name}", hide_input=True, err=True)
    return value


@secret.command("ls")
@with_grid
def secret_ls(grid: Grid) -> None:
    """Lists the names; a value never comes back."""
    found = grid.client.get("/v1/secrets")["secrets"]
    grid.out.table(found, {"NAME": "name"}, "no secrets: store one with `nanogrid secret put NAME`")


@secret.command("rm")
@click.argument("name")
@with_grid
def secret_rm(grid: Grid, name: str) -> None:
    """Removes a secret."""
    grid.client.send("DELETE", f"/v1/secrets/{segment(name)}")
    grid.out.done(f"removed {name}", {"name": name, "deleted": True})


@click.group()
def keys() -> None:
    """Makes, lists and revokes API keys."""


@keys.command("create")
@click.argument("name")
@click.option(
    "--scope", "scopes", type=click.Choice(SCOPES), multiple=True, default=("invoke", "read"), show_default=True,
    help="What the key may do; may be repeated.",
)  # fmt: skip
@click.option(
    "--functions",
    default="*",
    show_default=True,
    help="Pattern of the function names that it is for, such as 'shop-*'.",
)
@click.option("--expires", type=Span(), help="Ends by itself after 12h, 30d [default: never].")
@with_grid
def keys_create(grid: Grid, name: str, scopes: tuple[str, ...], functions: str, expires: float | None) -> None:
    """Makes a key and prints it: this once and never again."""
    wanted: dict[str, object] = {"name": name, "scopes": list(scopes), "functions": functions}
    if expires is not None:
        wanted["expires_at"] = time.time() + expires
    made = grid.client.send("POST", "/v1/keys", wanted)
    grid.out.done(made["key"], made)
    grid.out.note(f"key {made['id']}: keep it now, it cannot be shown again")


@keys.command("ls")
@with_grid
def keys_ls(grid: Grid) -> None:
    """Lists the keys, without what would let one use them."""
    columns: Columns = {
        "ID": "id",
        "NAME": "name",
        "SCOPES": lambda k: ",".join(k["scopes"]),
        "FUNCTIONS": "functions",
        "CREATED": lambda k: moment(k.get("created_at")),
        "EXPIRES": lambda k: moment(k.get("expires_at")) or "never",
    }
    grid.out.table(grid.client.get("/v1/keys")["keys"], columns, "no keys")


@keys.command("revoke")
@click.argument("id")
@with_grid
def keys_revoke(grid: Grid, id: str) -> None:
    """Ends a key, within seconds on every controller."""
    grid.client.send("DELETE", f"/v1/keys/{segment(id)}")
    grid.out.done(f"revoked {id}", {"id": id, "revoked": True})
