"""Cold starts, and what a grid costs while nothing happens: measured on one grid at a time."""

from __future__ import annotations

import select
import time
from dataclasses import dataclass, field
from typing import Final

from bench.client import RECEIVE, BenchError, Reader, Reply, connect
from bench.functions import ECHO, MARKED
from bench.grid import JSON_TYPE, Grid
from bench.load import event, wrong_echo
from bench.measure import Size
from bench.processes import pss_mib

PAUSE_S: Final = {"docker": 1.5}
"""Between first calls, so that the pool is full again; a container takes half a second to make."""
DEFAULT_PAUSE_S: Final = 0.5
OTHERS: Final = 10
"""First calls of languages other than Python; their deploys take long."""
BURST_S: Final = 60.0
FROZEN_S: Final = 5.0
"""Until sandboxes are frozen and the pool is at rest."""
FEW: Final = 10
WARM: Final = 20


@dataclass
class Cold:
    """First calls of versions that were never called, in milliseconds as the client sees them."""

    warm_pool: list[float] = field(default_factory=list)
    inside_ms: list[float] = field(default_factory=list)
    """Of the same calls, what the grid itself says its sandbox took."""
    burst: list[float] = field(default_factory=list)
    burst_all_ms: float = 0.0
    """Until the last of the burst was answered."""


def _check_cold(grid: Grid, reply: Reply, what: str) -> float:
    """The call was a cold start by the grid's own record; returns what that took."""
    problem = wrong_echo(event(0), reply)
    if problem:
        raise BenchError(f"{grid.name}: first call of {what}: {problem}")
    id = reply.header("x-nanogrid-invocation-id")
    if id is None:
        raise BenchError(f"{grid.name}: an answer without X-NanoGrid-Invocation-Id")
    record = grid.record(id)
    if not record.get("cold") or record["isolation"] != grid.level:
        raise BenchError(f"{grid.name}: the first call of {what} was not a cold start at this level: {record}")
    return float(record.get("usage", {}).get("cold_start_ms", 0.0))


def first_calls(grid: Grid, language: str, size: Size) -> Cold:
    """One after the other, the pool full before each."""
    count = size.cold if language == "python3" else min(size.cold, OTHERS)
    names = [grid.deploy(ECHO[language]) for _ in range(count)]
    pause_s = PAUSE_S.get(grid.level, DEFAULT_PAUSE_S)
    found = Cold()
    connection = grid.connect()
    time.sleep(2 * pause_s)
    for name in names:
        raw = grid.raw("POST", grid.path(name), event(0), JSON_TYPE)
        began = time.monotonic()
        reply = connection.call(raw)
        found.warm_pool.append((time.monotonic() - began) * 1000)
        found.inside_ms.append(_check_cold(grid, reply, name))
        time.sleep(pause_s)
    connection.close()
    return found


def burst(grid: Grid, language: str, size: Size, found: Cold) -> None:
    """All at once, far more than the pool holds."""
    names = [grid.deploy(ECHO[language]) for _ in range(size.burst)]
    time.sleep(4 * PAUSE_S.get(grid.level, DEFAULT_PAUSE_S))
    sockets = [connect("127.0.0.1", grid.port, BURST_S) for _ in names]
    readers = {opened.fileno(): Reader() for opened in sockets}
    raws = [grid.raw("POST", grid.path(name), event(0), JSON_TYPE) for name in names]
    poll = select.epoll()
    began: dict[int, float] = {}
    start = time.monotonic()
    for opened, raw in zip(sockets, raws, strict=True):
        poll.register(opened, select.EPOLLIN)
        began[opened.fileno()] = time.monotonic()
        opened.sendall(raw)
    by_number = {opened.fileno(): (opened, name) for opened, name in zip(sockets, names, strict=True)}
    replies: list[tuple[Reply, str]] = []
    while len(replies) < len(names):
        ready = poll.poll(BURST_S)
        if not ready:
            raise BenchError(f"{grid.name}: {len(names) - len(replies)} of {len(names)} first calls were not answered")
        for number, _ in ready:
            opened, name = by_number[number]
            data = opened.recv(RECEIVE)
            if not data:
                raise BenchError(f"{grid.name}: the connection of a first call was closed without an answer")
            reply = readers[number].feed(data)
            if reply is not None:
                found.burst.append((time.monotonic() - began[number]) * 1000)
                replies.append((reply, name))
    found.burst_all_ms = (time.monotonic() - start) * 1000
    poll.close()
    for opened in sockets:
        opened.close()
    for reply, name in replies:
        _check_cold(grid, reply, name)


@dataclass
class Rest:
    """A grid at rest."""

    empty_mib: float = 0.0
    """The whole grid before its first call, its spare sandboxes included."""
    sandbox_mib: float = 0.0
    """Of each of 10 idle Python sandboxes with all that it consists of."""
    whole_mib: float = 0.0
    """The whole grid with these 10."""
    cpu_share: float = 0.0
    """Of one core, with 20 warm sandboxes."""


def at_rest(grid: Grid, size: Size) -> Rest:
    """Memory and CPU of a fresh grid: before the first call, with 10, and with 20 warm sandboxes."""
    time.sleep(FROZEN_S)
    rest = Rest(empty_mib=grid.memory_mib())
    _warm_up(grid, FEW)
    sandboxes = _marked(grid, FEW)
    rest.sandbox_mib = sum(pss_mib(pids) for pids in sandboxes) / FEW
    rest.whole_mib = grid.memory_mib()
    _warm_up(grid, WARM - FEW)
    _marked(grid, WARM)
    before, began = grid.cpu_s(), time.monotonic()
    time.sleep(size.idle_s)
    after, took = grid.cpu_s(), time.monotonic() - began
    if not set(before) & set(after):
        raise BenchError(f"{grid.name}: none of its processes lived through {size.idle_s:g} s")
    rest.cpu_share = sum(used - before.get(pid, 0.0) for pid, used in after.items()) / took
    return rest


def _warm_up(grid: Grid, count: int) -> None:
    for name in [grid.deploy(MARKED) for _ in range(count)]:
        reply = grid.call("POST", grid.path(name), event(0), JSON_TYPE)
        problem = wrong_echo(event(0), reply)
        if problem:
            raise BenchError(f"{grid.name}: {problem}")
    time.sleep(FROZEN_S)


def _marked(grid: Grid, count: int) -> list[set[int]]:
    sandboxes = grid.marked_sandboxes()
    if len(sandboxes) != count or any(not pids for pids in sandboxes):
        raise BenchError(f"{grid.name}: {len(sandboxes)} warm sandboxes were found, there should be {count}")
    return sandboxes
