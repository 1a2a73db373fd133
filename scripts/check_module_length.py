"""Fails when a Python module has 400 lines or more: split it by concept."""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT = 400
FOLDERS = ("src", "tests", "runtimes", "scripts", "bench", "examples")


def too_long(root: Path) -> list[str]:
    """`path: lines` of every module below `root` that is at or over the limit."""
    found = []
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            lines = len(file.read_text(encoding="utf-8").splitlines())
            if lines >= LIMIT and "node_modules" not in file.parts:
                found.append(f"{file.relative_to(root)}: {lines} lines")
    return found


if __name__ == "__main__":
    long = too_long(Path(__file__).resolve().parent.parent)
    sys.exit("modules must stay below 400 lines:\n  " + "\n  ".join(long) if long else 0)
