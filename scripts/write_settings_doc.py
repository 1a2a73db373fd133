"""Writes docs/settings.md from the `Settings` class; --check only says whether the file is up to date."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from nanogrid.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "settings.md"
HEAD = """# Settings

Each is an environment variable or a key of the `[grid]` table of a TOML file. The variable wins over the
file, and an option of the command line over both. Unknown names and wrong values stop the start, all listed.

Written by `make docs` from `src/nanogrid/settings.py`: change it there.

| variable | key | default | meaning |
|---|---|---|---|
"""


def meanings(source: str) -> dict[str, str]:
    """Setting -> the string below it in the class."""
    settings = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Settings")
    found = {}
    for field, text in zip(settings.body, settings.body[1:], strict=False):
        named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def page() -> str:
    """The whole document. Raises KeyError with the name of a setting that says nothing about itself."""
    explained = meanings((ROOT / "src" / "nanogrid" / "settings.py").read_text())
    rows = [
        f"| `{PREFIX}{name.upper()}` | `{name}` | `{default}` | {explained[name].replace('|', '&#124;')} |"
        for name, default in zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True)
    ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        DOC.parent.mkdir(exist_ok=True)
        DOC.write_text(page())
    elif not DOC.is_file() or DOC.read_text() != page():
        sys.exit("docs/settings.md is not what settings.py says: make docs")
