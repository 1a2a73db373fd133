"""Secrets, keys and workers."""

from __future__ import annotations

import sys
import time

import click

from nanogrid.cli.client import Client, at
from nanogrid.cli.output import note, output_option, show, when


@click.group()
def secret() -> None:
    """Secrets that functions name in their config."""


@secret.command("put")
@click.argument("name")
def secret_put(name: str) -> None:
    """Stores a value, read from a prompt or from stdin: never from the command line, which others can see."""
    value = click.prompt("Value", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    Client().call("PUT", at("v1", "secrets", name), {"value": value})
    note(f"secret {name} is stored")


@secret.command("ls")
@output_option
def secret_ls(output: str) -> None:
    """The names of all secrets."""
    show(Client().call("GET", "/v1/secrets")["secrets"], output, (("NAME", lambda s: s["name"]),), "no secrets")


@secret.command("rm")
@click.argument("name")
def secret_rm(name: str) -> None:
    """Removes a secret."""
    Client().call("DELETE", at("v1", "secrets", name))
    note(f"secret {name} is gone")


@click.group()
def keys() -> None:
    """API keys."""


@keys.command("create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, default=("invoke", "read"), help="invoke, deploy, read or admin.")
@click.option("--functions", default="*", show_default=True, help="A pattern of function names.")
@click.option("--days", type=float, help="Days until it expires.")
@output_option
def keys_create(name: str, scopes: tuple[str, ...], functions: str, days: float | None, output: str) -> None:
    """Makes a key and prints it, this once."""
    expires = time.time() + days * 86400 if days else None
    body = {"name": name, "scopes": list(scopes), "functions": functions, "expires_at": expires}
    made = Client().call("POST", "/v1/keys", body)
    if output == "json":
        show(made, "json")
    else:
        click.echo(made["key"])
        note(f"key {made['id']} ({', '.join(made['scopes'])}): keep it now, it is not shown again")


@keys.command("ls")
@output_option
def keys_ls(output: str) -> None:
    """All keys."""
    columns = (
        ("ID", lambda k: k["id"]),
        ("NAME", lambda k: k["name"]),
        ("SCOPES", lambda k: ", ".join(k["scopes"])),
        ("FUNCTIONS", lambda k: k["functions"]),
        ("CREATED", lambda k: when(k["created_at"])),
        ("EXPIRES", lambda k: when(k["expires_at"])),
    )
    show(Client().call("GET", "/v1/keys")["keys"], output, columns)


@keys.command("revoke")
@click.argument("id")
def keys_revoke(id: str) -> None:
    """Ends a key."""
    Client().call("DELETE", at("v1", "keys", id))
    note(f"key {id} is revoked")


@click.group()
def workers() -> None:
    """Workers of the grid."""


@workers.command("ls")
@output_option
def workers_ls(output: str) -> None:
    """The workers that live."""
    columns = (
        ("ID", lambda w: w["id"]),
        ("ISOLATION", lambda w: w["isolation"]),
        ("RUNNING", lambda w: f"{w.get('running', 0)}/{w['capacity']}"),
        ("SANDBOXES", lambda w: w.get("sandboxes", 0)),
        ("DRAINING", lambda w: "yes" if w.get("draining") else ""),
        ("SINCE", lambda w: when(w.get("started_at"))),
    )
    show(Client().call("GET", "/v1/workers")["workers"], output, columns, "no worker lives")


@workers.command("drain")
@click.argument("id")
def workers_drain(id: str) -> None:
    """Lets a worker finish what it has, then stop."""
    Client().call("POST", f"{at('v1', 'workers', id)}:drain")
    note(f"{id} drains")


@click.command()
def scaling() -> None:
    """What waits, and what there is to run it."""
    show(Client().call("GET", "/v1/scaling"), "json")
