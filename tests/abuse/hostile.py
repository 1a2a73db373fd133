"""What the abuse tests share: pieces of hostile code, and how it is put into a sandbox."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nanogrid.sandbox.base import Limits
from sandbox_driver import Grid

ECHO = "def handler(event, context):\n    return event\n"

TRY = """
import errno
def attempt(action):
    try:
        got = action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "OK" if got is None else f"OK {got!r}"[:300]
"""

CALL = """
import ctypes, platform, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *args):
    ctypes.set_errno(0)
    got = libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args)
    return "OK" if got != -1 else errno.errorcode[ctypes.get_errno()]
"""


async def ask(grid: Grid, source: str, event: object = None, limits: Limits | None = None) -> Any:
    """The result of one handler in a sandbox of its own."""
    return await (await grid.run(source, limits)).call(event)


def rss_mb() -> float:
    """Resident memory of this process, which plays the worker."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
