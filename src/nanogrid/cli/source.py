"""What a deploy sends: a project folder, a single file or an archive, and its config."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from nanogrid.cli.errors import CliError

PROJECT: Final = "nanogrid.toml"
# Ending of a single file -> runtime, and how its handler is called.
SINGLE: Final[dict[str, tuple[str, str]]] = {
    ".py": ("python3", "{stem}.handler"),
    ".js": ("nodejs", "{stem}.handler"),
    ".mjs": ("nodejs", "{stem}.handler"),
    ".cjs": ("nodejs", "{stem}.handler"),
    ".go": ("go", ""),
    ".cpp": ("cpp", ""),
    ".cc": ("cpp", ""),
    ".cxx": ("cpp", ""),
    ".sh": ("command", "{name}"),
}
ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz")
# A file that tells the runtime of a folder without a nanogrid.toml.
TELLTALE: Final[dict[str, str]] = {
    "main.py": "python3",
    "index.js": "nodejs",
    "index.mjs": "nodejs",
    "go.mod": "go",
    "main.go": "go",
    "CMakeLists.txt": "cpp",
    "main.cpp": "cpp",
}


class Source(NamedTuple):
    """What was found: the archive to send, its config, and where the config comes from."""

    archive: Path
    config: dict[str, Any]
    toml: str
    """The text of nanogrid.toml, to name lines in errors; empty without one."""
    origin: str


@contextmanager
def read_source(path: Path, overrides: dict[str, Any]) -> Iterator[Source]:
    """Finds out what `path` is and packs it; the archive is gone afterwards.

    Args:
        path: a folder, a source file, or a zip or tar archive.
        overrides: config that beats nanogrid.toml (from the command line).

    Raises:
        CliError: nothing is there, or it does not say what it is; names the next step.
    """
    if not path.exists():
        raise CliError(f"{path} does not exist")
    with tempfile.TemporaryDirectory(prefix="nanogrid-deploy-") as name:
        scratch = Path(name)
        if path.is_dir():
            source = _folder(path, scratch)
        elif path.name.endswith(ARCHIVES):
            source = _archive(path)
        else:
            source = _single_file(path, scratch)
        config = {**source.config, **overrides}
        if "env" in overrides:
            config["env"] = {**source.config.get("env", {}), **overrides["env"]}
        if not config.get("runtime"):
            raise CliError(
                f"{path} does not say its runtime: write a {PROJECT} (`nanogrid init` shows one), or pass --runtime"
            )
        yield source._replace(config=config)


def _folder(path: Path, scratch: Path) -> Source:
    from nanogrid.deploy.package import ignored_by, pack

    file = path / PROJECT
    config, toml = parse_project(file.read_text(), str(file)) if file.is_file() else ({}, "")
    config.setdefault("name", path.resolve().name)
    if "runtime" not in config:
        told = next((runtime for file_name, runtime in TELLTALE.items() if (path / file_name).is_file()), None)
        config.update({"runtime": told} if told else {})
    archive = scratch / "code.zip"
    with archive.open("wb") as out:
        pack(path, out, ignored_by(path))
    return Source(archive, config, toml, str(file))


def _single_file(path: Path, scratch: Path) -> Source:
    from nanogrid.deploy.package import pack

    if path.suffix not in SINGLE:
        known = ", ".join((*SINGLE, *ARCHIVES))
        raise CliError(f"{path}: a single file must end in one of {known}; deploy the folder for anything else")
    runtime, handler = SINGLE[path.suffix]
    folder = scratch / "code"
    folder.mkdir()
    copy = folder / path.name
    shutil.copyfile(path, copy)
    # What is given as a script is meant to be started, whatever its mode on this disk.
    copy.chmod(0o755 if runtime == "command" or os.access(path, os.X_OK) else 0o644)
    archive = scratch / "code.zip"
    with archive.open("wb") as out:
        pack(folder, out)
    config: dict[str, Any] = {"name": path.stem, "runtime": runtime}
    if handler:
        config["handler"] = handler.format(stem=path.stem, name=path.name)
    return Source(archive, config, "", str(path))


def _archive(path: Path) -> Source:
    config: dict[str, Any] = {}
    toml = ""
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as package:
                if PROJECT in package.namelist():
                    config, toml = parse_project(package.read(PROJECT).decode("utf-8", "replace"), f"{path}:{PROJECT}")
        except zipfile.BadZipFile as error:
            raise CliError(f"{path} is not a zip archive: {error}") from error
    name = path.name
    for ending in ARCHIVES:
        name = name.removesuffix(ending)
    config.setdefault("name", name)
    return Source(path, config, toml, f"{path}:{PROJECT}")


def parse_project(text: str, origin: str) -> tuple[dict[str, Any], str]:
    """The config in a nanogrid.toml, and its text.

    Raises:
        CliError: it is not TOML; the message has file, line and column.
    """
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        what = str(error).partition(" (at ")[0]
        where = f"{origin}:{place[1]}:{place[2]}" if place else origin
        raise CliError(f"{where}: {what[:1].lower()}{what[1:]}") from error
    return config, text


def check(source: Source) -> None:
    """Checks the config before anything is sent, with the rules of the grid itself.

    Raises:
        CliError: naming file, line, field and what it may be.
    """
    import msgspec

    from nanogrid.errors import InvalidRequest
    from nanogrid.model.function import FunctionConfig, check_config

    try:
        check_config(msgspec.convert(source.config, FunctionConfig))
    except msgspec.ValidationError as error:
        raise CliError(_located(source, str(error), FunctionConfig.__struct_fields__)) from error
    except InvalidRequest as error:
        raise CliError(_located(source, error.detail, FunctionConfig.__struct_fields__)) from error


def _located(source: Source, text: str, fields: tuple[str, ...]) -> str:
    unknown = re.search(r"unknown field `([^`]+)`", text)
    path = re.search(r" - at `\$\.([^`]+)`", text)
    named = re.match(r"(\w+): ", text)
    if unknown:
        field = unknown[1]
        text = f"`{field}` is not known{_suggestion(field, fields)}"
    elif path:
        field = re.split(r"[.\[]", path[1])[0]
        text = f"`{field}`: {text[: path.start()].strip()}, it is {source.config.get(field)!r}"
    else:
        field = named[1] if named else "runtime" if "runtime" in text else "name" if "function name" in text else ""
    line = _line_of(source.toml, field)
    return f"{source.origin}:{line}: {text}" if line else text


def _suggestion(field: str, fields: tuple[str, ...]) -> str:
    import difflib

    close = difflib.get_close_matches(field, fields, n=1)
    return f": did you mean `{close[0]}`?" if close else f": use one of {', '.join(fields)}"


def _line_of(toml: str, field: str) -> int | None:
    pattern = re.compile(rf"\s*\[?\s*[\"']?{re.escape(field)}[\"']?\s*[=.\]]")
    return next((at for at, line in enumerate(toml.splitlines(), 1) if field and pattern.match(line)), None)
