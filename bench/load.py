"""The load generator: closed loop, one request in flight on each connection, every answer checked.

It works in a process of its own (`python -m bench.load`), which takes one plan a line on stdin and writes one
result a line on stdout, so that neither its start nor its garbage falls into a measurement.
"""

from __future__ import annotations

import gc
import json
import math
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.client import RECEIVE, BenchError, Reader, Reply, connect, request

STALL_S = 30.0
"""Without any answer for so long, the load is given up."""
MAX_PROBLEMS = 5
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Plan:
    """What to send, and for how long. Either `seconds` or `count` ends it."""

    port: int
    path: str
    connections: int
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    warmup_s: float = 0.0
    """Calls that begin within it are made and checked, but not counted."""
    count: int = 0
    check: str = "echo"
    """`echo`: 200 and the event comes back. `accepted`: 202 and an id, which is kept."""
    host: str = "127.0.0.1"


@dataclass
class Result:
    """What came of a plan. Times are of CLOCK_MONOTONIC, which all processes of a machine share."""

    calls: int = 0
    wrong: int = 0
    """Answers that were not what they should be, warm-up included; they are not in `calls`."""
    problems: list[str] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    per_s: float = 0.0
    generator_cpu: float = 0.0
    """Share of a core that the generator itself took."""
    ids: list[str] = field(default_factory=list)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def event(number: int) -> bytes:
    """An event of 43 bytes that no other call of the plan has, its keys in the order a sorting encoder gives."""
    return b'{"greeting":"hello-nanogrid","n":"%07d"}' % (number % 10_000_000)


def wrong_echo(sent: bytes, reply: Reply) -> str | None:
    """Why `reply` is not the echo of `sent`. Spaces between the parts of the JSON are the server's choice."""
    if reply.status == 200 and reply.body.translate(None, b" \n") == sent:
        return None
    return f"sent {sent!r}, got {reply.status} {reply.body[:200]!r}"


def wrong_accepted(sent: bytes, reply: Reply) -> str | None:
    """Why `reply` does not say that the event was accepted."""
    return (
        None
        if reply.status == 202 and b'"id"' in reply.body
        else f"sent {sent!r}, got {reply.status} {reply.body[:200]!r}"
    )


CHECKS: dict[str, Callable[[bytes, Reply], str | None]] = {"echo": wrong_echo, "accepted": wrong_accepted}


class _Line:
    """One connection and what is in flight on it."""

    __slots__ = ("began", "reader", "sent", "socket")

    def __init__(self, plan: Plan) -> None:
        self.socket = connect(plan.host, plan.port, STALL_S)
        self.reader = Reader()
        self.sent = b""
        self.began = 0.0


class _Drive:
    """One plan at work."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.result = Result()
        self.latencies: list[float] = []
        self._check = CHECKS[plan.check]
        self._head = request("POST", plan.path, event(0), {"content-type": "application/json", **plan.headers})[
            : -len(event(0))
        ]
        self._sent = 0
        self._open = 0
        self._count_from = 0.0
        self._until = math.inf

    def drive(self) -> Result:
        """Does it all."""
        lines = [_Line(self.plan) for _ in range(self.plan.connections)]
        cpu = time.process_time()
        start = time.monotonic()
        self._count_from = start + self.plan.warmup_s
        if self.plan.seconds:
            self._until = self._count_from + self.plan.seconds
        try:
            for line in lines:
                self._send(line)
            if len(lines) == 1:
                self._alone(lines[0])
            else:
                self._together({line.socket.fileno(): line for line in lines})
        except TimeoutError:
            self._wrong(f"no answer for {STALL_S:g} s")
        finally:
            for line in lines:
                line.socket.close()
        took = time.monotonic() - start
        return self._summary(start, (time.process_time() - cpu) / took)

    def _send(self, line: _Line) -> None:
        now = time.monotonic()
        if now >= self._until or (self.plan.count and self._sent >= self.plan.count):
            line.sent = b""
            return
        line.sent = event(self._sent)
        self._sent += 1
        self._open += 1
        line.began = now
        line.socket.sendall(self._head + line.sent)

    def _alone(self, line: _Line) -> None:
        while line.sent:
            self._received(line, line.socket.recv(RECEIVE))

    def _together(self, lines: dict[int, _Line]) -> None:
        poll = select.epoll()
        for number in lines:
            poll.register(number, select.EPOLLIN)
        while self._open:
            ready = poll.poll(STALL_S)
            if not ready:
                raise TimeoutError
            for number, _ in ready:
                line = lines[number]
                self._received(line, line.socket.recv(RECEIVE))
                if not line.sent:
                    # It has no more to do, and what its server does with it now does not matter.
                    poll.unregister(number)
        poll.close()

    def _received(self, line: _Line, data: bytes) -> None:
        if not data:
            raise BenchError(f"the connection was closed without an answer to {line.sent!r}")
        reply = line.reader.feed(data)
        if reply is None:
            return
        now = time.monotonic()
        self._open -= 1
        problem = self._check(line.sent, reply)
        if problem is not None:
            self._wrong(problem)
        elif line.began >= self._count_from and now <= self._until:
            self.latencies.append(now - line.began)
            self.result.ended = now
        if self.plan.check == "accepted" and problem is None:
            self.result.ids.append(reply.json()["id"])
        self._send(line)

    def _wrong(self, problem: str) -> None:
        self.result.wrong += 1
        if len(self.result.problems) < MAX_PROBLEMS:
            self.result.problems.append(problem)

    def _summary(self, start: float, cpu: float) -> Result:
        result = self.result
        result.began = max(start, self._count_from)
        span = self.plan.seconds or result.ended - result.began
        result.calls = len(self.latencies)
        result.per_s = result.calls / span if span > 0 else 0.0
        result.p50_ms = percentile(self.latencies, 0.50) * 1000
        result.p99_ms = percentile(self.latencies, 0.99) * 1000
        result.generator_cpu = cpu
        return result


def drive(plan: Plan) -> Result:
    """Puts the load of `plan` on its server, from this process; trouble is in the result, never raised."""
    work = _Drive(plan)
    try:
        return work.drive()
    except (OSError, BenchError, ValueError) as error:
        result = work.result
        if not result.problems:
            result.wrong += 1
            result.problems.append(f"{type(error).__name__}: {error}")
        return result


class Generator:
    """The process that makes load."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def drive(self, plan: Plan) -> Result:
        """Puts the load of `plan` on its server.

        Raises:
            BenchError: any answer was wrong or missing. A figure with failures in it would be worth nothing.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise BenchError("the load generator has no pipes")
        self._process.stdin.write(json.dumps(asdict(plan)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"the load generator ended with status {self._process.wait()}")
        result = Result(**json.loads(line))
        if result.wrong or not result.calls:
            raise BenchError(
                f"{result.wrong} wrong answers beside {result.calls} good ones at {plan.connections} connections to"
                f" {plan.path}: {'; '.join(result.problems) or 'nothing came back'}"
            )
        return result

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)


def _serve() -> None:
    gc.disable()
    for line in sys.stdin:
        raw: dict[str, Any] = json.loads(line)
        result = drive(Plan(**raw))
        print(json.dumps(asdict(result)), flush=True)
        gc.collect()


if __name__ == "__main__":
    socket.setdefaulttimeout(STALL_S)
    _serve()
