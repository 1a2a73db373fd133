"""What the command line prints: results on stdout, everything said about them on stderr.

Whatever comes from a function or a user is escaped before it is shown, so that no log line or name can
move the cursor, set the title or forge a line of ours.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

# Control characters (C0, DEL, C1) and those that change the direction of text.
_CONTROL: Final = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_IN_LINES: Final = re.compile(f"[{_CONTROL}]")
_IN_JSON: Final = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_IN_CELLS: Final = re.compile(rf"[\t\n{_CONTROL}]")
STYLES: Final = {"SUCCESS": "green", "FAILED": "red", "PROCESSING": "yellow", "PENDING": "cyan"}

Row = Mapping[str, Any]
Cell = Callable[[Row], object]
Columns = Mapping[str, str | Cell]
"""Heading -> the row's key, or a function of the row."""


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def escape(text: str) -> str:
    """`text` with its control characters shown as `\\x1b`; lines and tabs stay."""
    return _IN_LINES.sub(_escaped, text.replace("\r\n", "\n"))


def escape_cell(value: object) -> str:
    """A value as one line without control characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _IN_CELLS.sub(_escaped, str(value))


class Output:
    """The two streams of a command and the format asked for."""

    def __init__(self, form: str = "text") -> None:
        self.as_json = form == "json"

    def json(self, value: object) -> None:
        """A value as JSON; indented for a reader, one line for a program."""
        indent = 2 if sys.stdout.isatty() else None
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        self.line(_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text))

    def line(self, text: str = "") -> None:
        """A line on stdout."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line on stderr: never part of the result."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def payload(self, data: bytes) -> None:
        """A result, byte for byte; on a terminal its control characters are escaped and a line end added."""
        if sys.stdout.isatty():
            self.line(escape(data.decode("utf-8", "replace")).removesuffix("\n"))
            return
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def table(self, rows: Sequence[Row], columns: Columns, empty: str, whole: object = None) -> None:
        """Rows under headings; `empty` (on stderr) is the next step when there are none.

        Args:
            rows: what is shown.
            columns: heading -> key or function.
            empty: the sentence for no rows.
            whole: what `-o json` prints; the rows by default.
        """
        if self.as_json:
            self.json(list(rows) if whole is None else whole)
            return
        if not rows:
            self.note(empty)
            return
        cells = [[escape_cell(_cell(row, column)) for column in columns.values()] for row in rows]
        if sys.stdout.isatty():
            _rich_table(list(columns), cells)
        else:
            self._plain_table([list(columns), *cells])

    def fields(self, value: Row, columns: Columns) -> None:
        """One thing, a field a line; all of it with `-o json`."""
        if self.as_json:
            self.json(value)
            return
        shown = {heading: _cell(value, column) for heading, column in columns.items()}
        width = max(len(heading) for heading in shown) + 2
        for heading, content in shown.items():
            if content is not None:
                self.line(f"{heading.lower() + ':':<{width}}{escape_cell(content)}")

    def done(self, sentence: str, value: object) -> None:
        """The end of a command that changed something: a sentence, or with `-o json` the value."""
        if self.as_json:
            self.json(value)
        else:
            self.line(sentence)

    def _plain_table(self, lines: list[list[str]]) -> None:
        widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
        for line in lines:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(row: Row, column: str | Cell) -> object:
    return row.get(column) if isinstance(column, str) else column(row)


def _rich_table(headings: list[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for line in cells:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in line))
    # Wide enough for every table: a narrow terminal wraps whole lines, so that an id can be copied.
    Console(width=1000).print(table, soft_wrap=True)
