"""Times and spans as people write and read them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Final

import click

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")


class Span(click.ParamType[float, str]):
    """A span such as `30s`, `15m`, `2h`, `7d`; in seconds. A bare number is seconds."""

    name = "SPAN"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, or a usage error that shows the forms."""
        match = SPAN.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a span of time: use one like 30s, 15m, 2h or 7d", param, ctx)
        return float(match[1]) * UNITS[match[2] or "s"]


def age(at: float | None) -> str | None:
    """How long ago, in one or two units."""
    if not at:
        return None
    seconds = max(0, int(time.time() - at))
    for unit, size, smaller in (("d", 86400, "h"), ("h", 3600, "m"), ("m", 60, "s")):
        if seconds >= size:
            rest = seconds % size // UNITS[smaller]
            return f"{seconds // size}{unit}{rest}{smaller}" if rest else f"{seconds // size}{unit}"
    return f"{seconds}s"


def moment(at: float | None) -> str | None:
    """A time in UTC, such as 2026-01-31 12:00:00Z."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at else None


def span_ms(milliseconds: float | None) -> str | None:
    """A measured time, in the unit that reads best."""
    if milliseconds is None:
        return None
    if milliseconds < 1000:
        return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.1f} s" if milliseconds < 60_000 else f"{milliseconds / 60_000:.1f} min"


def size(count: float | None) -> str | None:
    """Bytes, in the unit that reads best."""
    if count is None:
        return None
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
