"""The table of runtimes: a runtime is added by one row here and a folder under `runtimes/`."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Runtime(NamedTuple):
    """What the platform must know of a runtime."""

    id: str
    family: str
    """Which bootstrap starts it, a folder under `runtimes/`: python3, nodejs or native."""
    default_handler: str
    dotted_handler: bool
    """Whether the handler is module.function."""
    aliases: str
    """A pattern of the other names that mean it."""


RUNTIMES: Final[dict[str, Runtime]] = {
    r.id: r
    for r in (
        Runtime("python3", "python3", "main.handler", True, r"python(3(\.\d+)?)?"),
        Runtime("nodejs", "nodejs", "index.handler", True, r"node(js)?(\d+(\.x)?)?"),
        Runtime("go", "native", "bootstrap", False, r"go(1(\.\w+)?)?"),
        Runtime("cpp", "native", "bootstrap", False, r"c\+\+|cpp(\d\d)?"),
        Runtime("command", "native", "bootstrap", False, r"cmd|exec"),
    )
}


def canonical_runtime(name: str) -> str | None:
    """The id of the runtime that `name` means, or None."""
    if name in RUNTIMES:
        return name
    return next((r.id for r in RUNTIMES.values() if re.fullmatch(r.aliases, name)), None)
