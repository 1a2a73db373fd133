"""What was measured as numbers for machines (JSON) and as a table for people."""

from __future__ import annotations

import math
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.cold import Cold, Rest
from bench.load import Result, percentile
from bench.measure import CONNECTIONS, Async, Rounds

TOOLS: Final = {
    "node": ["node", "--version"],
    "go": ["go", "version"],
    "g++": ["g++", "-dumpfullversion"],
    "redis": ["redis-server", "--version"],
    "docker": ["docker", "version", "--format", "{{.Server.Version}}"],
    "bwrap": ["bwrap", "--version"],
}


class Spread(NamedTuple):
    """A figure over the rounds: the median, and the distance between its quartiles."""

    median: float
    iqr: float

    def text(self, digits: int) -> str:
        """`median ±iqr`, for the table."""
        return f"{self.median:,.{digits}f} ±{self.iqr:,.{digits}f}"


def spread(values: Sequence[float]) -> Spread:
    """Median and IQR; the IQR of a single value is 0, of none everything is NaN."""
    if not values:
        return Spread(math.nan, math.nan)
    if len(values) == 1:
        return Spread(values[0], 0.0)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), high - low)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_mib": memory_kib // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
        "tools": {name: version for name, argv in TOOLS.items() if (version := _version(argv))},
    }


def _version(argv: list[str]) -> str | None:
    if shutil.which(argv[0]) is None:
        return None
    try:
        told = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip().splitlines()[0] if told.returncode == 0 and told.stdout.strip() else None


def sync_figures(rounds: Rounds) -> dict[str, Any]:
    """Per contestant and number of connections: median, IQR and the rounds themselves."""
    return {
        name: {
            str(count): {key: _figure(results, key) for key in ("p50_ms", "p99_ms", "per_s")}
            for count, results in found.items()
        }
        for name, found in rounds.items()
    }


def _figure(results: list[Result], key: str) -> dict[str, Any]:
    values = [float(getattr(result, key)) for result in results]
    return spread(values)._asdict() | {"rounds": values}


def ratios(rounds: Rounds, ours: str, theirs: str) -> dict[str, float]:
    """Ours to theirs, of pairs of the same round, so that what slows the whole machine falls out; their median."""
    found = {}
    for count in CONNECTIONS:
        pairs = list(zip(rounds[ours][count], rounds[theirs][count], strict=False))
        for key in ("p50_ms", "p99_ms", "per_s"):
            of_pairs = [getattr(a, key) / getattr(b, key) for a, b in pairs if getattr(b, key)]
            found[f"c{count}_{key}"] = spread(of_pairs).median
    return found


def cold_figures(cold: Cold) -> dict[str, Any]:
    """Percentiles of first calls."""
    return {
        "warm_pool": _percentiles(cold.warm_pool),
        "warm_pool_inside_p50_ms": percentile(cold.inside_ms, 0.5),
        "burst": _percentiles(cold.burst) | {"all_ms": cold.burst_all_ms} if cold.burst else None,
    }


def _percentiles(values: list[float]) -> dict[str, Any]:
    return {
        "count": len(values),
        "p50_ms": percentile(values, 0.5),
        "p99_ms": percentile(values, 0.99),
        "max_ms": max(values, default=math.nan),
        "iqr_ms": spread(values).iqr,
        "values": values,
    }


def async_figures(found: Async) -> dict[str, Any]:
    """Rates by round, percentiles of the single ones."""
    return {
        "singly_per_s": spread(found.singly)._asdict() | {"rounds": found.singly},
        "batch_per_s": spread(found.batches)._asdict() | {"rounds": found.batches} if found.batches else None,
        "single": _percentiles(found.latency_ms),
    }


def rest_figures(rest: Rest) -> dict[str, float]:
    """Memory and CPU at rest."""
    return {
        "grid_mib": rest.empty_mib,
        "grid_with_10_mib": rest.whole_mib,
        "sandbox_mib": rest.sandbox_mib,
        "idle_cpu_percent": rest.cpu_share * 100,
    }


def for_json(value: Any) -> Any:
    """JSON has no NaN, and nobody needs more than four digits behind the point."""
    if isinstance(value, float):
        return None if math.isnan(value) or math.isinf(value) else round(value, 4)
    if isinstance(value, dict):
        return {str(key): for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    return value


# -- goals --------------------------------------------------------------------------------------------


class Goal(NamedTuple):
    """A promise and how it stands."""

    what: str
    limit: str
    value: float
    met: bool


MEASURE: Final = "functions-framework, 2 workers"
"""The peer that the goals are set against."""
COLD_GOALS: Final = {"python3": 15.0, "go": 10.0, "cpp": 10.0}


def goals(data: dict[str, Any]) -> list[Goal]:
    """What the product promises, for each level that isolates; a figure that was not measured has no goal."""
    found: list[Goal] = []

    def at_most(what: str, limit: float, value: float) -> None:
        found.append(Goal(what, f"<= {limit:g}", value, value <= limit))

    def at_least(what: str, limit: float, value: float) -> None:
        found.append(Goal(what, f">= {limit:g}", value, value >= limit))

    for name, level in data["levels"].items():
        if name == "process":
            continue
        ratio = level.get("ratios", {}).get(MEASURE)
        if ratio:
            at_most(f"{name}: warm p50 at 1 connection, to functions-framework's", 0.6, ratio["c1_p50_ms"])
            at_least(f"{name}: warm calls/s at 32 connections, to functions-framework's", 3.0, ratio["c32_per_s"])
        for language, limit in COLD_GOALS.items():
            if language in level.get("cold", {}):
                value = level["cold"][language]["warm_pool"]["p50_ms"]
                at_most(f"{name}: cold start of {language}, p50 in ms", limit, value)
        if level.get("async"):
            at_least(f"{name}: asynchronous invocations/s", 1500.0, level["async"]["singly_per_s"]["median"])
        if level.get("rest"):
            at_most(f"{name}: idle CPU with 20 warm sandboxes, % of a core", 3.0, level["rest"]["idle_cpu_percent"])
    return found


# -- the table ----------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; the first to the left, numbers to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    shown = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        shown.append("  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip())
    shown.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(shown)


def number(value: float | None, digits: int = 1) -> str:
    """A figure, or a dash for one that was not measured."""
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def text(data: dict[str, Any]) -> str:
    """The whole report."""
    info = data["machine"]
    parts = [
        f"{info['cpu']}, {info['cores']} cores, kernel {info['kernel']}, Python {info['python']}, "
        f"load {info['load_average_before']:.1f} at the start"
    ]
    for title, body in (
        ("Warm synchronous echo of 43 bytes; median of the rounds ±IQR", _sync_table(data)),
        ("To functions-framework, median over pairs of the same round", _ratio_table(data)),
        ("First call of a version never called, ms end to end", _cold_table(data)),
        (
            "Asynchronous no-op, submission to stored outcome (a grid: on disk at the 202; Celery: in memory)",
            _async_table(data),
        ),
        ("At rest", _rest_table(data)),
        ("Goals", _goal_table(data)),
    ):
        if body:
            parts.append(f"{title}\n\n{body}")
    for title, lines in (("Notes", data["notes"]), ("PROBLEMS", data["problems"])):
        if lines:
            parts.append(f"{title}\n" + "\n".join(f"  {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def _sync_table(data: dict[str, Any]) -> str:
    head = ["", *(f"c={c} {what}" for c in CONNECTIONS for what in ("p50 ms", "p99 ms", "calls/s"))]
    rows = []
    for name, figures in data["sync"].items():
        row = [name]
        for count in CONNECTIONS:
            for key, digits in (("p50_ms", 2), ("p99_ms", 1), ("per_s", 0)):
                figure = figures[str(count)][key]
                row.append(Spread(figure["median"], figure["iqr"]).text(digits) if figure["rounds"] else "-")
        rows.append(row)
    return table(head, rows) if rows else ""


def _ratio_table(data: dict[str, Any]) -> str:
    head = ["", "c=1 p50", "c=1 p99", "c=1 calls/s", "c=32 p50", "c=32 p99", "c=32 calls/s"]
    rows = []
    for level in data["levels"].values():
        for peer, ratio in level.get("ratios", {}).items():
            cells = [
                number(ratio[f"c{c}_{key}"], 2) + "x" for c in CONNECTIONS for key in ("p50_ms", "p99_ms", "per_s")
            ]
            rows.append([f"{level['name']} / {peer}", *cells])
    return table(head, rows) if rows else ""


def _cold_table(data: dict[str, Any]) -> str:
    head = [
        "",
        "pool warm p50",
        "p99",
        "of it sandbox p50",
        f"{data['size']['burst']} at once p50",
        "max",
        "last of all at",
    ]
    rows = []
    for level in data["levels"].values():
        for language, figures in level.get("cold", {}).items():
            warm, at_once = figures["warm_pool"], figures["burst"] or {}
            row = [
                f"{level['name']}, {language}",
                number(warm["p50_ms"]),
                number(warm["p99_ms"]),
                number(figures["warm_pool_inside_p50_ms"]),
            ]
            row += [number(at_once.get(key)) for key in ("p50_ms", "max_ms", "all_ms")]
            rows.append(row)
    return table(head, rows) if rows else ""


def _async_table(data: dict[str, Any]) -> str:
    head = ["", "singly /s", "in batches /s", "alone p50 ms", "alone p99 ms"]
    shown = [(level["name"], level.get("async")) for level in data["levels"].values()]
    shown += [(name, figures) for name, figures in data["async_peers"].items()]
    rows = []
    for name, figures in shown:
        if figures:
            singly, batch, single = figures["singly_per_s"], figures["batch_per_s"], figures["single"]
            row = [name, Spread(singly["median"], singly["iqr"]).text(0)]
            row += [
                Spread(batch["median"], batch["iqr"]).text(0) if batch else "-",
                number(single["p50_ms"]),
                number(single["p99_ms"]),
            ]
            rows.append(row)
    return table(head, rows) if rows else ""


def _rest_table(data: dict[str, Any]) -> str:
    head = ["", "all MiB", "with 10 sandboxes MiB", "one idle Python sandbox MiB", "CPU with 20, % of a core"]
    rows = []
    for level in data["levels"].values():
        if rest := level.get("rest"):
            cells = [number(rest[key]) for key in ("grid_mib", "grid_with_10_mib", "sandbox_mib")]
            rows.append([level["name"], *cells, number(rest["idle_cpu_percent"], 2)])
    rows += [[name, number(mib), "-", "-", "-"] for name, mib in data["peer_memory_mib"].items()]
    return table(head, rows) if rows else ""


def _goal_table(data: dict[str, Any]) -> str:
    rows = [[goal.what, goal.limit, number(goal.value, 2), "met" if goal.met else "MISSED"] for goal in goals(data)]
    return table(["", "goal", "measured", ""], rows) if rows else ""
