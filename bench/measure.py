"""Warm calls, synchronous and asynchronous: what is measured in rounds that go from one contestant to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bench.client import BenchError
from bench.functions import ECHO, NOOP
from bench.grid import JSON_TYPE, Grid
from bench.load import Generator, Plan, Result, event
from bench.peers import CeleryPeer, FunctionsFramework

CONNECTIONS: Final = (1, 32)
SUBMITTERS: Final = 16
"""Connections over which asynchronous invocations are submitted singly."""
BATCHES: Final = 4
POLL_S: Final = 0.02
PAUSE_S: Final = 0.02
END_S: Final = 120.0


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    sync_s: float
    """Of one measurement, after its warm-up."""
    warmup_s: float
    many: int
    """Invocations of one asynchronous round."""
    single: int
    """Asynchronous invocations one at a time, in all rounds together."""
    cold: int
    """First calls for each language."""
    burst: int
    """First calls at once."""
    idle_s: float


FULL: Final = Size(rounds=7, sync_s=2.0, warmup_s=0.5, many=2000, single=100, cold=20, burst=24, idle_s=20.0)
QUICK: Final = Size(rounds=2, sync_s=0.7, warmup_s=0.4, many=300, single=20, cold=5, burst=16, idle_s=5.0)


class Target(NamedTuple):
    """Where an echo is served."""

    name: str
    port: int
    path: str
    headers: dict[str, str]


@dataclass
class Trouble:
    """What went wrong: each is printed, and makes the benchmark end with status 1."""

    texts: list[str] = field(default_factory=list)

    def guard(self, what: str, work: Callable[[], None]) -> bool:
        """Does the work; a failure is kept, and the rest goes on. Returns whether it went well."""
        try:
            work()
        except (BenchError, OSError, KeyError, ValueError) as error:
            self.texts.append(
                f"{what}: {type(error).__name__ if not isinstance(error, BenchError) else ''} {error}".replace(
                    ":  ", ": "
                )
            )
            return False
        return True


def grid_target(grid: Grid) -> Target:
    """A freshly deployed echo function."""
    return Target(grid.name, grid.port, grid.path(grid.deploy(ECHO["python3"])), grid.headers)


def peer_target(peer: FunctionsFramework) -> Target:
    """The peer's echo."""
    return Target(peer.name, peer.port, peer.path, peer.headers)


Rounds = dict[str, dict[int, list[Result]]]
"""By name of the contestant and number of connections."""


def in_turn(names: Iterable[str], round: int) -> list[str]:
    """The order in a round: each round begins one further, so that nobody always follows the same neighbour."""
    order = list(names)
    at = round % len(order) if order else 0
    return order[at:] + order[:at]


def _drop(result: Result) -> None:
    """A figure that only had to be right."""


def sync_rounds(
    generator: Generator, targets: list[Target], size: Size, trouble: Trouble, say: Callable[[str], None]
) -> Rounds:
    """Every target at every number of connections, round by round. A target that fails once is out."""
    by_name = {target.name: target for target in targets}
    found: Rounds = {name: {count: [] for count in CONNECTIONS} for name in by_name}
    for name, target in list(by_name.items()):
        # Pools and threads grow to the size that the load needs; that is no part of a warm call.
        first = Plan(target.port, target.path, max(CONNECTIONS), target.headers, seconds=size.sync_s)
        if not trouble.guard(f"{name}, warm-up", lambda plan=first: _drop(generator.drive(plan))):  # type: ignore[misc]
            del by_name[name]
    for round in range(size.rounds):
        for connections in CONNECTIONS:
            for name in in_turn(by_name, round):
                target = by_name[name]
                plan = Plan(
                    target.port, target.path, connections, target.headers, seconds=size.sync_s, warmup_s=size.warmup_s
                )

                def measure(name: str = name, plan: Plan = plan) -> None:
                    found[name][plan.connections].append(generator.drive(plan))

                if not trouble.guard(f"{name}, {connections} connections", measure):
                    del by_name[name]
        say(f"warm calls: round {round + 1} of {size.rounds}")
    return found


# -- asynchronous -------------------------------------------------------------------------------------


def _wait_for_end(grid: Grid, function: str, since: float) -> float:
    """The moment (monotonic) at which nothing was pending or in process any more."""
    until = time.monotonic() + END_S
    while time.monotonic() < until:
        # In this order, so that one that begins between the two questions is seen by the second.
        if not any(grid.records(function, since, status, limit=1) for status in ("PENDING", "PROCESSING")):
            return time.monotonic()
        time.sleep(POLL_S)
    raise BenchError(f"{grid.name}: not all invocations ended within {END_S:g} s")


def _check_success(grid: Grid, function: str, since: float, ids: list[str]) -> None:
    """Each id that was answered has a record, and it says SUCCESS."""
    if len(set(ids)) != len(ids):
        raise BenchError(f"{grid.name}: {len(ids) - len(set(ids))} ids were given twice")
    good = {record["id"] for record in grid.records(function, since, "SUCCESS")}
    missing = [id for id in ids if id not in good]
    if missing:
        raise BenchError(f"{grid.name}: {len(missing)} of {len(ids)} did not succeed; one is {grid.record(missing[0])}")


def many_singly(grid: Grid, generator: Generator, function: str, count: int) -> float:
    """Invocations a second: each submitted by a request of its own, from the first request to the last end."""
    since = time.time()
    headers = {**grid.headers, "prefer": "respond-async"}
    result = generator.drive(Plan(grid.port, grid.path(function), SUBMITTERS, headers, count=count, check="accepted"))
    ended = _wait_for_end(grid, function, since)
    if len(result.ids) != count:
        raise BenchError(f"{grid.name}: {len(result.ids)} of {count} were accepted")
    _check_success(grid, function, since, result.ids)
    return count / (ended - result.began)


def many_in_batches(grid: Grid, function: str, count: int) -> float:
    """Invocations a second: submitted by a few requests, from the first request to the last end."""
    since, began = time.time(), time.monotonic()
    events = [event(number) for number in range(count)]
    size = max(1, count // BATCHES)
    ids: list[str] = []
    for at in range(0, count, size):
        ids += grid.batch(function, events[at : at + size])
    ended = _wait_for_end(grid, function, since)
    _check_success(grid, function, since, ids)
    return count / (ended - began)


def one_by_one(grid: Grid, function: str, count: int) -> list[float]:
    """Milliseconds from the submission to the answer that it ended, with nothing else to do."""
    connection, times = grid.connect(), []
    submit = grid.raw("POST", grid.path(function), event(0), {**JSON_TYPE, "prefer": "respond-async"})
    for _ in range(count):
        began = time.monotonic()
        accepted = connection.call(submit)
        if accepted.status != 202:
            raise BenchError(f"{grid.name}: a submission answered {accepted.status} {accepted.body[:200]!r}")
        record = connection.call(grid.raw("GET", f"{accepted.json()['url']}?wait=30")).json()
        times.append((time.monotonic() - began) * 1000)
        if record.get("status") != "SUCCESS":
            raise BenchError(f"{grid.name}: an asynchronous invocation ended as {record}")
        time.sleep(PAUSE_S)
    connection.close()
    return times


@dataclass
class Async:
    """What came of one contestant's asynchronous rounds."""

    singly: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)


def async_rounds(
    generator: Generator,
    grids: list[Grid],
    celery: CeleryPeer | None,
    size: Size,
    trouble: Trouble,
    say: Callable[[str], None],
) -> dict[str, Async]:
    """Grids and Celery in turn; fewer rounds than of warm calls, for each lasts longer."""
    functions: dict[str, str] = {}
    by_name: dict[str, Grid | CeleryPeer] = {grid.name: grid for grid in grids}
    if celery is not None:
        by_name[celery.name] = celery
    found = {name: Async() for name in by_name}
    rounds = max(2, size.rounds // 2)

    def one(name: str, contestant: Grid | CeleryPeer) -> None:
        got, single = found[name], max(1, size.single // rounds)
        if isinstance(contestant, CeleryPeer):
            got.singly.append(contestant.many(size.many))
            got.latency_ms += contestant.single(single)
            return
        if name not in functions:
            functions[name] = contestant.deploy(NOOP)
            # Warm, as Celery's workers are.
            many_singly(contestant, generator, functions[name], max(100, size.many // 10))
        got.singly.append(many_singly(contestant, generator, functions[name], size.many))
        got.batches.append(many_in_batches(contestant, functions[name], size.many))
        got.latency_ms += one_by_one(contestant, functions[name], single)

    for round in range(rounds):
        for name in in_turn(by_name, round):
            if not trouble.guard(f"{name}, asynchronous", lambda name=name: one(name, by_name[name])):  # type: ignore[misc]
                del by_name[name]
        say(f"asynchronous: round {round + 1} of {rounds}")
    return found
