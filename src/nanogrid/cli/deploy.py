"""`nanogrid deploy`: sends a project and shows its build as it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from nanogrid.cli.client import BLOCK, Client, segment
from nanogrid.cli.errors import PLATFORM_FAILED, CliError, Problem
from nanogrid.cli.output import escape, escape_cell
from nanogrid.cli.shared import Grid, with_grid
from nanogrid.cli.source import Source, check, read_source

DEPLOY_S: Final = 3600.0
"""A build may be silent for as long as its own limit; what is longer is a lost connection."""


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=".")
@click.option("--name", help="Name of the function [default: from nanogrid.toml, else that of the folder or file].")
@click.option(
    "--runtime", help="python3, nodejs, go, cpp or command [default: from nanogrid.toml or the file's ending]."
)
@click.option("--handler", help="What is called, such as main.handler.")
@click.option("--memory", "memory_mb", type=int, metavar="MB", help="Memory limit in MiB.")
@click.option(
    "--timeout", "timeout_s", type=float, metavar="SECONDS", help="Time limit of one attempt [default: none]."
)
@click.option("--retries", type=int, help="Attempts that may follow a failed asynchronous one.")
@click.option("--concurrency", type=int, help="Invocations that run at the same time at most.")
@click.option("--warm", type=int, help="Sandboxes kept loaded.")
@click.option("--schedule", help="A cron expression, such as '*/5 * * * *'.")
@click.option("--url/--no-url", default=None, help="Whether the function is served at /f/NAME/.")
@click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="Environment variable; may be repeated.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="Secret in its environment; may be repeated.")
@with_grid
def deploy(grid: Grid, /, path: Path, env: tuple[str, ...], secrets: tuple[str, ...], **given: Any) -> None:
    """Builds and publishes a function.

    PATH is a folder with a nanogrid.toml, a single file (.py .js .mjs .go .cpp .sh) or an archive (.zip, .tar.gz).
    Options win over nanogrid.toml. The build's output goes to stderr. Nothing changes when a step fails; the
    same code and config make no new version.
    """
    overrides = {key: value for key, value in given.items() if value is not None}
    if env:
        overrides["env"] = _variables(env)
    if secrets:
        overrides["secrets"] = list(secrets)
    with read_source(path, overrides) as source:
        check(source)
        function = publish(grid.client, source, lambda line: grid.out.note(f"  {escape(line)}"))
    name, version = escape_cell(function["name"]), function["version"]
    grid.out.done(f"deployed {name} version {version}", function)
    grid.out.note(f"invoke it: nanogrid invoke {name} -d '{{}}'")


def _variables(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--env")
        found[name] = value
    return found


def publish(client: Client, source: Source, log: Callable[[str], None]) -> dict[str, Any]:
    """Uploads a source; `log` gets the lines of the build as they come. Returns the function.

    Raises:
        Problem: it does not build, does not load, or the config is wrong.
    """
    boundary = f"nanogrid-{os.urandom(16).hex()}"
    parts = _multipart(source, boundary)
    headers = {
        "Accept": "application/x-ndjson",
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(len(parts[0]) + source.archive.stat().st_size + len(parts[1])),
    }

    def body() -> Iterator[bytes]:
        yield parts[0]
        with source.archive.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
        yield parts[1]

    path = f"/v1/functions/{segment(source.config['name'])}"
    with client.open("PUT", path, body, headers, DEPLOY_S) as response:
        for raw in response:
            try:
                line = json.loads(raw)
            except ValueError as error:
                raise CliError(f"the grid's answer is not readable: {raw[:80]!r}", PLATFORM_FAILED) from error
            if "log" in line:
                log(str(line["log"]))
            elif "function" in line:
                function: dict[str, Any] = line["function"]
                return function
            elif "error" in line:
                raise Problem(line["error"], int(line["error"].get("status", 500)))
    sentence = "the connection broke during the deploy: look with `nanogrid versions ls`, then try again"
    raise CliError(sentence, PLATFORM_FAILED)


def _multipart(source: Source, boundary: str) -> tuple[bytes, bytes]:
    """What stands before and behind the archive."""
    config = json.dumps(source.config).encode()
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="config"\r\n'.encode()
        + b"Content-Type: application/json\r\n\r\n"
        + config
        + f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="code"; filename="code.zip"\r\n'.encode()
        + b"Content-Type: application/zip\r\n\r\n"
    )
    return head, f"\r\n--{boundary}--\r\n".encode()
