"""`python -m bench`: starts grids and peers, measures all of them in the same rounds, prints a table.

Ends with status 1 when anything answered wrongly or a part that was asked for could not be measured. A goal
that is missed is shown as such, and is no failure: the machine may be busy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench import report
from bench.client import BenchError
from bench.cold import Cold, Rest, at_rest, burst, first_calls
from bench.functions import ECHO
from bench.grid import COMMAND, Grid, LevelMissing
from bench.load import Generator
from bench.measure import FULL, QUICK, Async, Rounds, Size, Trouble, async_rounds, grid_target, peer_target, sync_rounds
from bench.peers import CeleryPeer, FunctionsFramework, install

LEVELS: Final = ("bwrap", "docker", "process")
CACHE: Final = Path(__file__).resolve().parent.parent / ".cache"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures NanoGrid beside its peers.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE as well")
    parser.add_argument("--quick", action="store_true", help="a few seconds for each figure: a check that all works")
    parser.add_argument("--levels", default="", help="isolation levels, with commas; default: those this machine has")
    parser.add_argument("--no-peers", action="store_true", help="only the grids")
    parser.add_argument("--nanogrid", default=COMMAND, help="the command to measure; default: that of this environment")
    parsed = parser.parse_args(argv)
    parsed.levels = [level for level in parsed.levels.split(",") if level]
    unknown = [level for level in parsed.levels if level not in LEVELS]
    if unknown:
        parser.error(f"--levels: {', '.join(unknown)}: choose from {', '.join(LEVELS)}")
    return parsed


def say(what: str) -> None:
    """Progress, beside the report."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


class Bench:
    """All that is up, and all that was found."""

    def __init__(self, size: Size, stack: contextlib.ExitStack) -> None:
        self.size = size
        self.stack = stack
        self.trouble = Trouble()
        self.notes: list[str] = []
        self.machine = report.machine()
        self.grids: dict[str, Grid] = {}
        self.frameworks: list[FunctionsFramework] = []
        self.celery: CeleryPeer | None = None
        self.generator = stack.enter_context(Generator())
        self.rest: dict[str, Rest] = {}
        self.cold: dict[str, dict[str, Cold]] = {}
        self.rounds: Rounds = {}
        self.asynchronous: dict[str, Async] = {}
        self.peer_memory: dict[str, float] = {}

    def start_grids(self, asked: list[str], command: str) -> None:
        """Those asked for; without a wish, those that can be had here."""
        for level in asked or LEVELS:
            say(f"starting a grid, isolation {level}")
            try:
                grid = Grid(level, command)
            except LevelMissing as error:
                (self.trouble.texts if asked else self.notes).append(f"{level} is left out: {error}")
            except BenchError as error:
                self.trouble.texts.append(f"{level}: {error}")
            else:
                self.stack.callback(grid.stop)
                self.grids[level] = grid
        if not self.grids:
            self.trouble.texts.append("no grid could be started")

    def start_peers(self) -> None:
        """All peers; one that cannot be had is a problem, as the comparison lacks it then."""
        say("starting the peers")
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="nanogrid-bench-peers-")))

        def frameworks() -> None:
            python = install(CACHE)
            for workers in (1, 2):
                peer = FunctionsFramework(python, workers, folder)
                self.stack.callback(peer.stop)
                self.frameworks.append(peer)

        def celery() -> None:
            self.celery = CeleryPeer(install(CACHE), folder)
            self.stack.callback(self.celery.stop)

        self.trouble.guard("functions-framework", frameworks)
        self.trouble.guard("Celery", celery)

    def measure_rest(self) -> None:
        """Each grid as it is after its start, so that nothing else is warm in it."""
        for level, grid in self.grids.items():
            say(f"{grid.name}: at rest")

            def rest(level: str = level, grid: Grid = grid) -> None:
                self.rest[level] = at_rest(grid, self.size)

            self.trouble.guard(f"{grid.name}, at rest", rest)

    def measure_warm(self) -> None:
        """Synchronous, then asynchronous, all contestants in turn."""
        targets = [peer_target(peer) for peer in self.frameworks]
        for grid in self.grids.values():
            self.trouble.guard(f"{grid.name}, deploy", lambda grid=grid: targets.append(grid_target(grid)))  # type: ignore[misc]
        self.rounds = sync_rounds(self.generator, targets, self.size, self.trouble, say)
        for framework in self.frameworks:
            self.peer_memory[framework.name] = framework.memory_mib()
        if self.celery is not None:
            self.peer_memory[self.celery.name] = self.celery.memory_mib()
        grids = list(self.grids.values())
        self.asynchronous = async_rounds(self.generator, grids, self.celery, self.size, self.trouble, say)

    def measure_cold(self) -> None:
        """First calls, language by language."""
        for level, grid in self.grids.items():
            self.cold[level] = {}
            for language in ECHO:
                say(f"{grid.name}: cold starts of {language}")

                def first(level: str = level, grid: Grid = grid, language: str = language) -> None:
                    found = first_calls(grid, language, self.size)
                    self.cold[level][language] = found
                    if language == "python3":
                        burst(grid, language, self.size, found)

                self.trouble.guard(f"{grid.name}, cold start of {language}", first)

    def data(self) -> dict[str, Any]:
        """Everything, as it goes into the JSON file."""
        levels = {}
        for level, grid in self.grids.items():
            shown: dict[str, Any] = {"name": grid.name, "start_s": grid.start_s}
            if level in self.rest:
                shown["rest"] = report.rest_figures(self.rest[level])
            shown["cold"] = {language: report.cold_figures(cold) for language, cold in self.cold.get(level, {}).items()}
            if grid.name in self.asynchronous:
                shown["async"] = report.async_figures(self.asynchronous[grid.name])
            shown["ratios"] = {
                peer.name: report.ratios(self.rounds, grid.name, peer.name)
                for peer in self.frameworks
                if grid.name in self.rounds and peer.name in self.rounds
            }
            levels[level] = shown
        ours = {grid.name for grid in self.grids.values()}
        return {
            "machine": self.machine,
            "size": self.size._asdict(),
            "levels": levels,
            "sync": report.sync_figures(self.rounds),
            "async_peers": {n: report.async_figures(a) for n, a in self.asynchronous.items() if n not in ours},
            "peer_memory_mib": self.peer_memory,
            "notes": self.notes,
            "problems": self.trouble.texts,
        }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Starts all, measures all, ends all."""
    began = time.time()
    with contextlib.ExitStack() as stack:
        bench = Bench(QUICK if options.quick else FULL, stack)
        steps: list[Callable[[], None]] = [lambda: bench.start_grids(options.levels, options.nanogrid)]
        if not options.no_peers:
            steps.append(bench.start_peers)
        steps += [bench.measure_rest, bench.measure_warm, bench.measure_cold]
        for step in steps:
            step()
        say("done, stopping everything")
        data = bench.data()
    return data | {
        "started_at": began,
        "took_s": time.time() - began,
        "goals": [g._asdict() for g in report.goals(data)],
    }


def main() -> int:
    """Returns the exit status."""
    options = arguments()
    try:
        data = measure(options)
    except KeyboardInterrupt:
        say("stopped")
        return 130
    sys.stdout.write(report.text(data))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report.for_json(data), indent=1) + "\n")
    return 1 if data["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
