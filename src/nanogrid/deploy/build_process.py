"""Starts the programs of a build: in a minimal environment, in their own process group, log streamed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from nanogrid.errors import BuildFailed

TAIL_LINES: Final = 200
MAX_LINE: Final = 4096
Env = Mapping[str, str] | None
Wrap = Callable[[list[str], list[Path]], list[str]]
"""Puts a command line into the build sandbox: (argv, folders it may write) -> argv. Network stays on."""


class BuildShell:
    """One build's folder, environment and log."""

    def __init__(
        self,
        work: Path,
        env: Mapping[str, str],
        writable: list[Path],
        log: Callable[[str], None],
        wrap: Wrap | None,
    ) -> None:
        self.work = work
        """A temporary folder; gone after the build."""
        self.env = dict(env)
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._writable = [work, *writable]
        self._log = log
        self._wrap = wrap

    def say(self, line: str) -> None:
        """One line for whoever watches the deploy."""
        self.tail.append(line)
        self._log(line)

    def failed(self, detail: str) -> BuildFailed:
        """The error of this build, with the end of its log."""
        return BuildFailed(detail, log="\n".join(self.tail))

    async def run(self, argv: list[str], cwd: Path, problem: str, env: Env = None) -> None:
        """Starts `argv` and waits for its end.

        Raises:
            BuildFailed: `problem` as the detail and the end of the output as `log`, on any status but 0.
        """
        status = await self.status(argv, cwd, env)
        if status:
            raise self.failed(f"{problem} ({Path(argv[0]).name} {_how(status)})")

    async def status(self, argv: list[str], cwd: Path, env: Env = None, quiet: bool = False) -> int:
        """The exit status of `argv`; its output goes to the log line by line unless `quiet`."""
        wrapped = self._wrap(argv, self._writable) if self._wrap is not None else argv
        try:
            process = await asyncio.create_subprocess_exec(
                *wrapped,
                cwd=cwd,
                env={**self.env, **(env or {})},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BuildFailed(f"cannot start {wrapped[0]}: {error.strerror or error}") from error
        assert process.stdout is not None
        reader = asyncio.ensure_future(_lines(process.stdout, _ignore if quiet else self.say))
        try:
            return await process.wait()
        finally:
            _kill_group(process.pid)
            await process.wait()
            # A process that left the group may hold the pipe open; it does not hold the build.
            await asyncio.wait([reader], timeout=2)
            reader.cancel()


def _ignore(line: str) -> None:
    """Output that nobody needs to see."""


def _how(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


async def _lines(stream: asyncio.StreamReader, say: Callable[[str], None]) -> None:
    """Cuts what arrives into lines of a bounded length."""
    rest = b""
    while data := await stream.read(65536):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_LINE:
            lines.append(rest)
            rest = b""
        for line in lines:
            say(line[:MAX_LINE].decode("utf-8", "replace").rstrip("\r"))
    if rest:
        say(rest.decode("utf-8", "replace"))
