"""Projects: `init` makes one, `deploy` sends one."""

from __future__ import annotations

import io
import json
import tomllib
import uuid
import zipfile
from pathlib import Path
from typing import Any

import click

from nanogrid.cli.client import Client, Refused, at, refusal
from nanogrid.cli.output import note, output_option

BY_ENDING = {".py": "python3", ".js": "nodejs", ".mjs": "nodejs", ".go": "go", ".cpp": "cpp", ".sh": "command"}
STARTERS = {
    "python3": ("main.py", 'def handler(event, context):\n    return {"hello": event}\n', "main.handler"),
    "nodejs": ("index.js", "exports.handler = async (event, context) => ({ hello: event });\n", "index.handler"),
    "go": (
        "main.go",
        'package main\n\nimport (\n\t"context"\n\t"encoding/json"\n\n\t"nanogrid"\n)\n\nfunc main() {\n'
        "\tnanogrid.Start(func(ctx context.Context, event json.RawMessage) (any, error) {\n"
        '\t\treturn map[string]any{"hello": event}, nil\n\t})\n}\n',
        "",
    ),
    "cpp": (
        "main.cpp",
        "#include <nanogrid.hpp>\n\nint main() {\n"
        "    nanogrid::start([](std::string_view event, nanogrid::context&) {\n"
        '        return "{\\"hello\\":" + std::string(event) + "}";\n    });\n}\n',
        "",
    ),
    "command": ("bootstrap", '#!/bin/sh\nprintf \'{"hello":%s}\' "$(cat)"\n', ""),
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--runtime", type=click.Choice(sorted(STARTERS)), default="python3", show_default=True)
@click.option("--name", help="The function's name; the folder's by default.")
def init(folder: Path, runtime: str, name: str | None) -> None:
    """Makes a new project in FOLDER: code that works, and its nanogrid.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    file, code, handler = STARTERS[runtime]
    toml = f'name = "{name or folder.resolve().name}"\nruntime = "{runtime}"\n'
    if handler:
        toml += f'handler = "{handler}"\n'
    taken = [path for path in (folder / file, folder / "nanogrid.toml") if path.exists()]
    if taken:
        raise click.UsageError(f"{taken[0]} is there already: choose an empty folder")
    (folder / file).write_text(code)
    (folder / "nanogrid.toml").write_text(toml)
    note(f"made {folder / file} and {folder / 'nanogrid.toml'}; next: nanogrid deploy {folder}")


def read_project(path: Path) -> tuple[dict[str, Any], bytes]:
    """The config and the zip of what is to be deployed: a folder, a single file or an archive.

    Raises:
        click.UsageError: naming the file and what is wrong with it.
    """
    from nanogrid.deploy.package import ignored_by, pack
    from nanogrid.errors import NanoGridError

    if not path.exists():
        raise click.UsageError(f"{path} is not there: give a folder, a file or a zip")
    packed = io.BytesIO()
    if path.is_dir():
        config = read_toml(path / "nanogrid.toml") if (path / "nanogrid.toml").exists() else {}
        config.setdefault("name", path.resolve().name)
        try:
            pack(path, packed, ignored_by(path))
        except NanoGridError as error:
            raise click.UsageError(error.detail) from error
        return config, packed.getvalue()
    if path.suffix in (".zip", ".gz", ".tgz", ".tar"):
        return {"name": path.name.partition(".")[0]}, path.read_bytes()
    runtime = BY_ENDING.get(path.suffix)
    if runtime is None:
        raise click.UsageError(f"{path}: no runtime is known for {path.suffix or 'a file without an ending'}")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr(path.name, path.read_bytes())
    handler = {"python3": f"{path.stem}.handler", "nodejs": f"{path.stem}.handler", "command": path.name}.get(runtime)
    return {"name": path.stem, "runtime": runtime, **({"handler": handler} if handler else {})}, packed.getvalue()


def read_toml(file: Path) -> dict[str, Any]:
    """A project's settings; `[grid]` tables belong to servers and are left out."""
    try:
        config = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file}: {error}") from error
    config.pop("grid", None)
    return config


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=".")
@click.option("--name", help="The function's name.")
@click.option("--runtime", help="python3, nodejs, go, cpp or command.")
@click.option("--handler", help="What is called, such as main.handler.")
@click.option("--memory", "memory_mb", type=int, help="MiB of memory.")
@click.option("--timeout", "timeout_s", type=float, help="Seconds; without it there is no limit.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable of the function's environment.")
@click.option("--url", is_flag=True, default=None, help="Serve it at /f/NAME/ as well.")
@output_option
def deploy(path: Path, output: str, env: tuple[str, ...], **given: Any) -> None:
    """Deploys PATH (a folder, a single file or a zip): builds it and makes it the newest version."""
    config, code = read_project(path)
    config.update({key: value for key, value in given.items() if value is not None})
    for pair in env:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--env {pair}: write NAME=VALUE")
        config.setdefault("env", {})[key] = value
    if "runtime" not in config:
        raise click.UsageError('no runtime: put `runtime = "python3"` into nanogrid.toml, or say --runtime')
    function = send(Client(), config, code, note)
    if output == "json":
        click.echo(json.dumps(function, indent=2))
    else:
        name = function["name"]
        note(f"{name} is deployed, version {function['version']}; next: nanogrid invoke {name} -d '{{}}'")


def send(client: Client, config: dict[str, Any], code: bytes, log: Any) -> dict[str, Any]:
    """Uploads, passing the build's output to `log`; returns the function.

    Raises:
        Refused: the build or a check failed, or the grid does not take it.
    """
    edge = uuid.uuid4().hex
    body = b"".join(
        (
            f'--{edge}\r\nContent-Disposition: form-data; name="config"\r\n\r\n{json.dumps(config)}\r\n'.encode(),
            f'--{edge}\r\nContent-Disposition: form-data; name="code"; filename="code.zip"\r\n'.encode(),
            b"Content-Type: application/zip\r\n\r\n",
            code,
            f"\r\n--{edge}--\r\n".encode(),
        )
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}", "Accept": "application/x-ndjson"}
    answer = client.open("PUT", at("v1", "functions", str(config["name"])), body, headers)
    if answer.status >= 400:
        raise refusal(answer.status, answer.read())
    while line := answer.readline():
        told = json.loads(line)
        if "log" in told:
            log(f"  {told['log']}")
        elif "error" in told:
            raise Refused(told["error"].get("status", 500), told["error"])
        else:
            function: dict[str, Any] = told["function"]
            return function
    raise Refused(503, {"detail": "the grid stopped in the middle of the deploy: deploy again"})
