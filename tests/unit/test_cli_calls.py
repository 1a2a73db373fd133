"""What commands send, print and exit with, against a stand-in server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in import KEY, StandIn, serve

from nanogrid.cli.main import call

ID = "01a20b89-35c7-7713-9c17-385896765f16"
INVOKE = "POST /v1/functions/echo/invocations"
RECORD = f"GET /v1/invocations/{ID}"
RESULT = f"GET /v1/invocations/{ID}/result"


def failed(code: str, message: str = "no") -> dict[str, Any]:
    failure = {"error_class": code, "type": "ValueError", "message": message, "stack": ["main.py:1 in handler"]}
    return {"code": code, "status": 422, "detail": f"ValueError: {message}", "invocation": ID, "failure": failure}


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("NANOGRID_API_KEY", KEY)
    monkeypatch.setattr("nanogrid.cli.client.TRIES", 2)
    with serve(StandIn()) as stand_in:
        monkeypatch.setenv("NANOGRID_URL", stand_in.url)
        yield stand_in


def test_invoke_prints_the_result_byte_for_byte_and_nothing_else(grid: StandIn, capfdbinary: Any) -> None:
    grid.on(INVOKE, 200, b'{"a":\xe2\x82\xac1}', X_NanoGrid_Invocation_Id=ID)
    assert call(["invoke", "echo", "-d", '{"x": 1}']) == 0
    out, err = capfdbinary.readouterr()
    assert out == b'{"a":\xe2\x82\xac1}' and err == b""
    [asked] = grid.asked
    assert asked.body == b'{"x": 1}' and asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["prefer"] == "wait=55" and asked.headers["content-type"] == "application/json"


def test_a_long_call_is_awaited_at_the_address_of_the_202(grid: StandIn, capfd: Any) -> None:
    grid.on(INVOKE, 202, {"id": ID}, X_NanoGrid_Invocation_Id=ID)
    grid.on(RECORD, 200, {"id": ID, "status": "PROCESSING"})
    grid.on(RECORD, 200, {"id": ID, "status": "SUCCESS"})
    grid.on(RESULT, 200, 42, X_NanoGrid_Invocation_Id=ID)
    assert call(["invoke", "echo"]) == 0
    assert capfd.readouterr().out == "42"
    assert [asked.method for asked in grid.asked] == ["POST", "GET", "GET", "GET"]


def test_a_wait_that_is_over_has_its_own_exit_status(grid: StandIn, capfd: Any) -> None:
    grid.on(INVOKE, 202, {"id": ID}, X_NanoGrid_Invocation_Id=ID)
    grid.on(RECORD, 200, {"id": ID, "status": "PROCESSING"})
    assert call(["invoke", "echo", "--wait", "1"]) == 4
    out, err = capfd.readouterr()
    assert out == "" and ID in err and grid.asked[0].headers["prefer"] == "wait=1"


def test_async_prints_the_id(grid: StandIn, capfd: Any) -> None:
    grid.on(INVOKE, 202, {"id": ID, "url": "u", "status": "PENDING"}, X_NanoGrid_Invocation_Id=ID)
    assert call(["invoke", "echo", "--async", "--idempotency-key", "k"]) == 0
    assert capfd.readouterr().out == ID + "\n"
    assert grid.asked[0].headers["prefer"] == "respond-async" and grid.asked[0].headers["idempotency-key"] == "k"


@pytest.mark.parametrize(
    ("status", "body", "exit_status"),
    [
        (422, failed("FUNCTION_ERROR"), 1),
        (422, failed("OUT_OF_MEMORY"), 1),
        (409, failed("CANCELLED"), 1),
        (503, failed("WORKER_LOST"), 3),
        (422, failed("PLATFORM"), 3),
        (404, {"code": "NOT_FOUND", "detail": "no function 'echo'"}, 2),
        (401, {"code": "UNAUTHENTICATED", "detail": "no key"}, 2),
        (413, {"code": "TOO_LARGE", "detail": "over the limit"}, 2),
        (429, {"code": "THROTTLED", "detail": "later"}, 3),
        (503, {"code": "NO_CAPACITY", "detail": "full"}, 3),
        (500, b"<html>", 3),
    ],
)
def test_exit_statuses(grid: StandIn, capfd: Any, status: int, body: Any, exit_status: int) -> None:
    grid.on(INVOKE, status, body)
    assert call(["invoke", "echo"]) == exit_status
    out, err = capfd.readouterr()
    assert out == "" and len(grid.asked) == 1, "a call without an idempotency key is never sent twice"
    assert isinstance(body, bytes) or str(body["detail"]).removeprefix("ValueError: ") in err


def test_a_failure_shows_class_stack_and_where_the_log_is(grid: StandIn, capfd: Any) -> None:
    grid.on(INVOKE, 422, failed("FUNCTION_ERROR", "esc \x1b[2J"))
    assert call(["invoke", "echo"]) == 1
    err = capfd.readouterr().err
    assert "FUNCTION_ERROR: ValueError: esc \\x1b[2J\n  main.py:1 in handler\n" in err and f"logs {ID}" in err


def test_a_failure_as_json_is_the_problem_document(grid: StandIn, capfd: Any) -> None:
    grid.on(INVOKE, 422, failed("FUNCTION_ERROR"))
    assert call(["invoke", "echo", "-o", "json"]) == 1
    assert json.loads(capfd.readouterr().out)["failure"]["type"] == "ValueError"


def test_follow_shows_events_and_log_on_stderr_only(grid: StandIn, capfd: Any) -> None:
    events = [
        ("status", {"at": 1.0, "status": "PROCESSING", "attempt": 1}),
        ("progress", {"at": 1.5, "data": 0.5}),
        ("partial", {"at": 1.5, "data": "a piece\x07"}),
        ("status", {"at": 2.0, "status": "SUCCESS", "attempt": 1}),
    ]
    stream = "".join(f"id: {n}\nevent: {k}\ndata: {json.dumps(d)}\n\n" for n, (k, d) in enumerate(events, 1))
    grid.on(INVOKE, 202, {"id": ID}, X_NanoGrid_Invocation_Id=ID)
    grid.on(RECORD, 200, {"id": ID, "status": "PROCESSING"})
    grid.on(f"{RECORD}/events", 200, b": hello\n\n" + stream.encode())
    grid.on(f"{RECORD}/logs", 200, b"one\ntwo")
    grid.on(RESULT, 200, {"ok": True}, X_NanoGrid_Invocation_Id=ID)
    assert call(["invoke", "echo", "--follow"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"ok": True}
    for line in ("0.00s PROCESSING", "0.50s progress 50%", "> a piece\\x07", "1.00s SUCCESS", "| one", "| two"):
        assert line in err


def test_a_stream_that_breaks_goes_on_behind_the_last_event(grid: StandIn, capfd: Any) -> None:
    first = b'id: 7\nevent: status\ndata: {"at": 1.0, "status": "PROCESSING"}\n\nretry: 1000\n\n'
    grid.on(INVOKE, 202, {"id": ID}, X_NanoGrid_Invocation_Id=ID)
    grid.on(RECORD, 200, {"id": ID, "status": "PROCESSING"})
    grid.on(f"{RECORD}/events", 200, first)
    grid.on(f"{RECORD}/events", 200, b'id: 8\nevent: status\ndata: {"at": 2.0, "status": "SUCCESS"}\n\n')
    grid.on(f"{RECORD}/logs", 200, b"")
    grid.on(RESULT, 200, 1)
    assert call(["invoke", "echo", "-f"]) == 0
    assert [a.headers.get("last-event-id") for a in grid.asked if a.path.endswith("/events")] == [None, "7"]


def test_only_what_is_harmless_is_repeated(grid: StandIn, capfd: Any) -> None:
    grid.on("GET /v1/functions", 503, {"code": "STORE_UNAVAILABLE", "detail": "no"})
    grid.on("GET /v1/functions", 200, {"functions": []})
    assert call(["functions", "ls", "-o", "json"]) == 0
    assert json.loads(capfd.readouterr().out) == []
    grid.on(INVOKE, 0)
    assert call(["invoke", "echo"]) == 3
    assert len([a for a in grid.asked if a.method == "POST"]) == 1
    assert call(["invoke", "echo", "--idempotency-key", "k"]) == 3
    assert len([a for a in grid.asked if a.method == "POST"]) == 3


def test_no_grid_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("NANOGRID_URL", raising=False)
    assert call(["functions", "ls"]) == 2
    assert "nanogrid up" in capfd.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NANOGRID_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("NANOGRID_API_KEY", KEY)
        assert call(["functions", "ls"]) == 3
    assert "no grid answers at http://127.0.0.1:" in capfd.readouterr().err


@pytest.mark.parametrize("data", ["{bad", "@/does/not/exist", '{"a": 1,}', "NaN x"])
def test_an_event_that_is_not_json_is_not_sent(grid: StandIn, capfd: Any, data: str) -> None:
    assert call(["invoke", "echo", "-d", data]) == 2
    assert capfd.readouterr().err and not grid.asked


def test_an_event_of_another_type_is_sent_as_it_is(grid: StandIn, tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_bytes(b"a,b\n\xff")
    grid.on(INVOKE, 200, 1)
    assert call(["invoke", "echo", "-d", f"@{tmp_path / 'e.csv'}", "--type", "text/csv"]) == 0
    assert grid.asked[0].body == b"a,b\n\xff" and grid.asked[0].headers["content-type"] == "text/csv"


def test_deploy_uploads_and_shows_the_build(grid: StandIn, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "hi.py").write_text("def handler(event, context): return 1\n")
    lines = [{"log": "building\x1b[0m"}, {"function": {"name": "hi", "version": 3}}]
    grid.on("PUT /v1/functions/hi", 200, "\n".join(map(json.dumps, lines)).encode())
    assert call(["deploy", str(tmp_path / "hi.py"), "--memory", "64", "--env", "A=b=c"]) == 0
    out, err = capfd.readouterr()
    assert out == "deployed hi version 3\n" and "building\\x1b[0m" in err
    config = {"name": "hi", "runtime": "python3", "handler": "hi.handler", "memory_mb": 64, "env": {"A": "b=c"}}
    assert json.dumps(config).encode() in grid.asked[0].body and b"hi.py" in grid.asked[0].body


def test_a_build_that_fails_is_the_functions_fault(grid: StandIn, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "hi.py").write_text("def handler(\n")
    problem = {"code": "BUILD_FAILED", "status": 422, "detail": "hi.py:1: never closed"}
    grid.on("PUT /v1/functions/hi", 200, json.dumps({"error": problem}).encode() + b"\n")
    assert call(["deploy", str(tmp_path / "hi.py")]) == 1
    assert "hi.py:1: never closed" in capfd.readouterr().err


def test_rollback_without_a_version_takes_the_one_before(grid: StandIn, capfd: Any) -> None:
    versions = [{"version": n, "latest": n == 4} for n in (5, 4, 2)]
    grid.on("GET /v1/functions/echo/versions", 200, {"versions": versions})
    grid.on("POST /v1/functions/echo/versions/2:rollback", 200, {"name": "echo", "latest": 2})
    assert call(["rollback", "echo"]) == 0
    assert "version 2" in capfd.readouterr().out


def test_dead_letters_are_chosen_across_pages(grid: StandIn, capfd: Any) -> None:
    grid.on("GET /v1/dead-letters", 200, {"dead_letters": [{"id": "a", "function": "f"}], "cursor": "a"})
    grid.on("GET /v1/dead-letters", 200, {"dead_letters": [{"id": "b", "function": "g"}], "cursor": None})
    grid.on("POST /v1/dead-letters/b:redrive", 202, {"id": "new"})
    assert call(["dlq", "redrive", "--all", "--function", "g"]) == 0
    assert capfd.readouterr().out == "new\n"
    assert call(["dlq", "redrive"]) == 2


def test_names_cannot_lead_to_another_route(grid: StandIn) -> None:
    assert call(["functions", "describe", "../keys?x"]) == 2
    assert grid.asked[0].path == "/v1/functions/..%2Fkeys%3Fx"
