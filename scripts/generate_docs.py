"""Writes docs/cli.md from the commands' own --help; with --check it only says whether the file is up to date."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from nanogrid.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "cli.md"
WIDTH = 100
HEAD = """# Command line

`nanogrid COMMAND --help` says the same. Written by `make docs` from the commands: change it there.

**Which grid:** `NANOGRID_URL` and `NANOGRID_API_KEY`, else the profile that the last `nanogrid up` wrote
(`$XDG_CONFIG_HOME/nanogrid/profile.json`, by default under `~/.config`, readable by its owner only).
The profile's key is never sent to another address than the profile's own.

**Output:** results go to stdout and everything said about them to stderr. `-o json` prints the API's own JSON.
On a terminal tables are coloured, elsewhere they are plain. Control characters in names, logs and errors are shown
as `\\x1b`; only the result of `invoke` is passed on byte for byte, when stdout is not a terminal.

| exit status | meaning |
|---|---|
| 0 | success |
| 1 | the function failed, or its code does not build or load |
| 2 | the request is wrong: usage, an unknown name, a key without the scope |
| 3 | the platform failed, or no grid answers |
| 4 | the `--wait` is over and the invocation goes on |
| 130 | Ctrl-C |
"""


def pages(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """(command line, help) of a command and of those below it."""
    with click.Context(command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH) as context:
        yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from pages(inner, f"{path} {name}")


def page() -> str:
    """The whole document."""
    parts = [HEAD]
    for title, section in COMMANDS.items():
        parts.append(f"\n## {title}\n")
        for name, entry in section.items():
            command = getattr(importlib.import_module(f"nanogrid.cli.{entry.module}"), entry.name)
            for path, text in pages(command, f"nanogrid {name}"):
                parts.append(f"\n### {path}\n\n```\n{text.rstrip()}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        DOC.parent.mkdir(exist_ok=True)
        DOC.write_text(page())
    elif not DOC.is_file() or DOC.read_text() != page():
        sys.exit("docs/cli.md is not what the commands say: make docs")
