"""The benchmark's own parts: above all, that its checks can fail."""

from __future__ import annotations

import io
import json
import math
import os
import socket
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# The benchmark is no part of the package; it lies at the top of the source tree.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import report
from bench.__main__ import arguments
from bench.client import BenchError, Connection, Reader, Reply, request
from bench.functions import ECHO, NOOP, multipart, package
from bench.load import Generator, Plan, Result, drive, event, percentile, wrong_accepted, wrong_echo
from bench.measure import Trouble, in_turn
from bench.processes import cpu_s, free_port, parent, pss_mib, tree

Answer = Callable[[bytes], bytes]


def ok(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@contextmanager
def server(answer: Answer) -> Iterator[int]:
    """A keep-alive server on loopback; an answer of b"" closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(opened: socket.socket) -> None:
        with opened:
            while data := opened.recv(65536):
                told = answer(data.partition(b"\r\n\r\n")[2])
                if not told:
                    return
                opened.sendall(told)

    def accept() -> None:
        while True:
            try:
                opened, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(opened,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_reader_puts_a_reply_together_from_pieces() -> None:
    reader, raw = Reader(), ok(b"abc") + ok(b"de")
    replies = []
    for at in range(len(raw)):
        reply = reader.feed(raw[at : at + 1])
        if reply:
            replies.append(reply.body)
    assert replies == [b"abc", b"de"]


def test_reader_takes_chunks() -> None:
    reader = Reader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n") is None
    reply = reader.feed(b"2;x=y\r\nde\r\n0\r\n\r\n")
    assert reply is not None and reply.body == b"abcde"


@pytest.mark.parametrize("raw", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nabc"])
def test_reader_refuses_what_it_cannot_delimit(raw: bytes) -> None:
    with pytest.raises(BenchError):
        Reader().feed(raw)


def test_request_and_headers() -> None:
    assert request("POST", "/x", b"ab", {"a": "b"}).endswith(b"a: b\r\ncontent-length: 2\r\n\r\nab")
    reply = Reply(200, b"HTTP/1.1 200 OK\r\nX-Id: 7", b'{"a": 1}')
    assert reply.header("x-id") == "7" and reply.header("y") is None and reply.json() == {"a": 1}


def test_events_are_43_bytes_and_differ() -> None:
    assert len(event(0)) == len(event(9_999_999)) == 43
    assert event(1) != event(2) and json.loads(event(12))["n"] == "0000012"


@pytest.mark.parametrize("encode", [lambda e: e, lambda e: json.dumps(json.loads(e)).encode() + b"\n"])
def test_an_echo_may_be_spaced_but_not_changed(encode: Answer) -> None:
    assert wrong_echo(event(5), Reply(200, b"", encode(event(5)))) is None
    assert wrong_echo(event(5), Reply(200, b"", encode(event(6)))) is not None
    assert wrong_echo(event(5), Reply(202, b"", encode(event(5)))) is not None


def test_accepted_needs_202_and_an_id() -> None:
    assert wrong_accepted(b"", Reply(202, b"", b'{"id": "x"}')) is None
    assert wrong_accepted(b"", Reply(200, b"", b'{"id": "x"}')) is not None
    assert wrong_accepted(b"", Reply(202, b"", b"{}")) is not None


@pytest.mark.parametrize("connections", [1, 4])
def test_drive_counts_good_answers(connections: int) -> None:
    with server(ok) as port:
        result = drive(Plan(port, "/", connections, count=50))
        assert (result.calls, result.wrong) == (50, 0)
        assert 0 < result.p50_ms <= result.p99_ms and result.per_s > 0
        timed = drive(Plan(port, "/", connections, seconds=0.2, warmup_s=0.1))
        assert timed.calls > 10 and timed.per_s == pytest.approx(timed.calls / 0.2)


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize(
    "answer", [lambda b: ok(b"{}"), lambda b: ok(b, b"500 No"), lambda b: b"", lambda b: b"nonsense\r\n\r\n"]
)
def test_drive_notices_wrong_answers(answer: Answer, connections: int) -> None:
    with server(answer) as port:
        result = drive(Plan(port, "/", connections, count=8))
    assert result.wrong > 0 and result.calls == 0 and result.problems


def test_drive_notices_one_wrong_answer_among_many() -> None:
    with server(lambda body: ok(b"{}" if b"0000007" in body else body)) as port:
        result = drive(Plan(port, "/", 2, count=20))
    assert (result.calls, result.wrong) == (19, 1)


def test_generator_raises_on_wrong_answers_and_goes_on() -> None:
    with Generator() as generator, server(lambda body: ok(b"{}")) as bad, server(ok) as good:
        with pytest.raises(BenchError, match="8 wrong answers"):
            generator.drive(Plan(bad, "/", 2, count=8))
        with pytest.raises(BenchError, match="ConnectionRefusedError"):
            generator.drive(Plan(free_port(), "/", 1, count=1))
        assert generator.drive(Plan(good, "/", 2, count=8)).calls == 8


def test_generator_keeps_ids() -> None:
    answer = lambda body: ok(b'{"id":"%b"}' % json.loads(body)["n"].encode(), b"202 Accepted")  # noqa: E731
    with Generator() as generator, server(answer) as port:
        result = generator.drive(Plan(port, "/", 3, count=9, check="accepted"))
    assert sorted(result.ids) == [f"{n:07d}" for n in range(9)]


def test_connection_reports_a_closed_one() -> None:
    with server(lambda body: b"") as port:
        connection = Connection("127.0.0.1", port)
        with pytest.raises(BenchError, match="closed without an answer"):
            connection.call(request("GET", "/"))
        connection.close()


def test_percentile_is_nearest_rank() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert math.isnan(percentile([], 0.5))


def test_packages_differ_unless_compiled() -> None:
    source = ECHO["python3"]
    assert package(source, "a") != package(source, "b")
    with zipfile.ZipFile(io.BytesIO(package(ECHO["go"], "a"))) as archive:
        assert sorted(archive.namelist()) == ["go.mod", "main.go"]
    body, kind = multipart({"name": "x"}, package(NOOP))
    assert body.count(kind.partition("boundary=")[2].encode()) == 3 and b'{"name": "x"}' in body


def test_processes_see_themselves() -> None:
    me = os.getpid()
    assert me in tree(me) and me in tree(parent(me))
    assert 1 < pss_mib([me]) < 4096
    assert cpu_s([me])[me] > 0 and cpu_s([2**30]) == {} and parent(2**30) == 0


def test_turns_rotate() -> None:
    assert [in_turn("abc", round) for round in range(3)] == [list("abc"), list("bca"), list("cab")]
    assert in_turn([], 1) == []


def test_trouble_keeps_failures_and_lets_defects_through() -> None:
    trouble = Trouble()

    def fail() -> None:
        raise BenchError("no answer")

    assert trouble.guard("good", lambda: None) and not trouble.guard("bad", fail)
    assert trouble.texts == ["bad: no answer"]
    with pytest.raises(ZeroDivisionError):
        trouble.guard("defect", lambda: print(1 / 0))


def test_spread_and_ratios() -> None:
    assert report.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0)
    assert report.spread([7.0]) == (7.0, 0.0) and math.isnan(report.spread([]).median)

    def results(p50: float) -> dict[int, list[Result]]:
        # The machine gets slower by the round; the ratio stays.
        return {c: [Result(calls=1, p50_ms=p50 * n, p99_ms=n, per_s=1 / n) for n in (1, 2, 4)] for c in (1, 32)}

    found = report.ratios({"a": results(1.0), "b": results(2.0)}, "a", "b")
    assert found["c1_p50_ms"] == 0.5 and found["c32_per_s"] == 1.0


def test_goals_can_be_missed() -> None:
    def data(cold: float, share: float) -> dict[str, object]:
        level = {
            "ratios": {report.MEASURE: {"c1_p50_ms": share, "c32_per_s": 5.0}},
            "cold": {"python3": {"warm_pool": {"p50_ms": cold}}},
        }
        return {"levels": {"bwrap": level, "process": level}}

    assert [goal.met for goal in report.goals(data(5.0, 0.3))] == [True, True, True]
    assert [goal.met for goal in report.goals(data(50.0, 0.9))] == [False, True, False]


def test_json_has_no_nan() -> None:
    assert report.for_json({"a": [math.nan, 1.23456]}) == {"a": [None, 1.2346]}


def test_table_aligns() -> None:
    assert report.table(["", "x"], [["name", "1.0"], ["n", "10.0"]]).splitlines()[2:] == ["name   1.0", "n     10.0"]


def test_levels_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments(["--levels", "bwrap,docker"]).levels == ["bwrap", "docker"]
    with pytest.raises(SystemExit):
        arguments(["--levels", "vm"])
    assert "choose from bwrap, docker, process" in capsys.readouterr().err
