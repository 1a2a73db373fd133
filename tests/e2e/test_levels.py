"""Each language on each isolation level: deployed, called sync and async, its failures told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from grid import Grid, example

EXAMPLES = sorted(p.parent for p in (Path(__file__).parents[2] / "examples").glob("*/nanogrid.toml"))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
@pytest.mark.timeout(300)
def test_examples_run_sync_and_async(grid: Grid, folder: Path) -> None:
    code, config, event = example(folder)
    name = json.loads(config)["name"]
    deployed = grid.upload(name, code, config)
    assert deployed.status in (200, 201), deployed.body
    answer = grid.call("POST", f"/v1/functions/{name}/invocations", event)
    assert answer.status == 200, answer.body
    id = grid.submit(name, json.loads(event))
    record = grid.record(id, wait=30)
    assert record["status"] == "SUCCESS", record
    assert record["isolation"] == grid.isolation
    assert record["usage"]["run_ms"] > 0
    assert type(grid.call("GET", f"/v1/invocations/{id}/result").json) is type(answer.json)


def test_a_failure_has_its_stack_and_the_next_call_works(grid: Grid) -> None:
    source = "def handler(event, context):\n    print('printed', event)\n    return 10 // event\n"
    assert grid.deploy("divide", {"main.py": source}).status == 201
    failed = grid.invoke("divide", 0)
    assert failed.status == 422
    problem = failed.json
    assert problem["code"] == "FUNCTION_ERROR" and problem["failure"]["type"] == "ZeroDivisionError"
    assert any("main.py" in line and "3" in line for line in problem["failure"]["stack"])
    log = grid.call("GET", f"/v1/invocations/{problem['invocation']}/logs")
    assert log.body == b"printed 0\n"
    assert grid.invoke("divide", 5).json == 2


def test_a_crash_is_told_from_an_error_and_does_not_stop_the_function(grid: Grid) -> None:
    source = "import os\ndef handler(event, context):\n    if event: os._exit(3)\n    return 'alive'\n"
    assert grid.deploy("crash", {"main.py": source}).status == 201
    failed = grid.invoke("crash", 1)
    assert failed.status == 422 and failed.json["code"] == "SANDBOX_CRASH"
    assert "exit status 3" in failed.json["detail"]
    assert grid.invoke("crash", 0).json == "alive"


def test_cancel_ends_a_handler_that_ignores_sigterm(grid: Grid) -> None:
    source = "import signal, time\ndef handler(e, c):\n    signal.signal(15, signal.SIG_IGN)\n    while True: time.sleep(1)\n"
    assert grid.deploy("deaf", {"main.py": source}).status == 201
    id = grid.submit("deaf")
    grid.until(id, "PROCESSING")
    answer = grid.call("POST", f"/v1/invocations/{id}:cancel")
    assert answer.status in (200, 202)
    record = grid.until(id, "FAILED", timeout_s=10)
    assert record["failure"]["error_class"] == "CANCELLED"


def test_a_timeout_ends_the_handler(grid: Grid) -> None:
    source = "import time\ndef handler(event, context):\n    time.sleep(60)\n"
    assert grid.deploy("slow", {"main.py": source}, timeout_s=0.5).status == 201
    failed = grid.invoke("slow")
    assert failed.status == 422 and failed.json["code"] == "TIMEOUT"
    assert "0.5 s" in failed.json["detail"]


def test_progress_and_pieces_come_live(grid: Grid) -> None:
    source = (
        "import nanogrid\ndef handler(event, context):\n"
        "    nanogrid.progress({'done': 1})\n    nanogrid.emit('piece')\n    return 'all'\n"
    )
    assert grid.deploy("live", {"main.py": source}).status == 201
    id = grid.submit("live")
    stream = grid.call("GET", f"/v1/invocations/{id}/events").body.decode()
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    kinds = [event["status"] if event["kind"] == "status" else event["kind"] for event in events]
    assert kinds[0] == "PENDING" and kinds[-1] == "SUCCESS"
    assert {"PROCESSING", "progress", "partial"} <= set(kinds)
    assert next(e["data"] for e in events if e["kind"] == "progress") == {"done": 1}
    # Resumed in the middle, it goes on where it stopped.
    again = grid.call("GET", f"/v1/invocations/{id}/events", Last_Event_ID=str(events[0]["n"])).body.decode()
    assert [json.loads(x[6:])["n"] for x in again.splitlines() if x.startswith("data: ")] == [
        e["n"] for e in events[1:]
    ]


def test_memory_over_the_limit_is_out_of_memory(grid: Grid) -> None:
    if grid.isolation == "process":
        pytest.skip("the process level promises no memory limit")
    source = "def handler(event, context):\n    b = bytearray(400 << 20)\n    b[::4096] = b'x' * len(b[::4096])\n"
    assert grid.deploy("hungry", {"main.py": source}, memory_mb=64, retries=0).status == 201
    failed = grid.invoke("hungry")
    assert failed.status == 422 and failed.json["code"] == "OUT_OF_MEMORY", failed.body
