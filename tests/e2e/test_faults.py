"""Processes killed for real: nothing that was accepted is lost, and each has one outcome."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from grid import Grid

SLEEP = {"main.py": "import time\ndef handler(event, context):\n    time.sleep(event)\n    return context.attempt\n"}
LEVELS = ["process", pytest.param("bwrap", marks=pytest.mark.needs("bwrap"))]


@pytest.mark.parametrize("isolation", LEVELS)
@pytest.mark.timeout(180)
def test_a_killed_worker_loses_nothing(new_grid: Callable[..., Grid], isolation: str) -> None:
    grid = new_grid(isolation)
    grid.deploy("sleep", SLEEP)
    id = grid.submit("sleep", 3)
    record = grid.until(id, "PROCESSING")
    time.sleep(0.5)
    os.kill(grid.worker_pid(record["worker"]), signal.SIGKILL)
    killed = time.monotonic()
    ended = grid.until(id, "SUCCESS", "FAILED", timeout_s=45)
    assert ended["status"] == "SUCCESS" and ended["attempt"] == 2
    assert grid.call("GET", f"/v1/invocations/{id}/result").json == 2
    assert time.monotonic() - killed < 45
    stream = grid.call("GET", f"/v1/invocations/{id}/events").body.decode()
    assert stream.count('"status":"SUCCESS"') == 1


@pytest.mark.timeout(180)
def test_a_synchronous_caller_gets_its_answer_though_the_worker_dies(new_grid: Callable[..., Grid]) -> None:
    grid = new_grid()
    grid.deploy("sleep", SLEEP)
    answers = []
    import threading

    caller = threading.Thread(target=lambda: answers.append(grid.invoke("sleep", 3, Prefer="wait=60")))
    caller.start()
    until = time.monotonic() + 10
    running: list[dict[str, str]] = []
    while not running and time.monotonic() < until:
        running = grid.call("GET", "/v1/invocations?status=PROCESSING").json["invocations"]
        time.sleep(0.1)
    os.kill(grid.worker_pid(running[0]["worker"]), signal.SIGKILL)
    caller.join(timeout=70)
    assert answers and answers[0].status == 200, answers[0].body
    assert answers[0].json == 2


@pytest.mark.timeout(180)
def test_at_most_once_is_kept_when_the_worker_dies(new_grid: Callable[..., Grid]) -> None:
    grid = new_grid()
    grid.deploy("once", SLEEP, retries=0)
    id = grid.submit("once", 3)
    record = grid.until(id, "PROCESSING")
    os.kill(grid.worker_pid(record["worker"]), signal.SIGKILL)
    ended = grid.until(id, "FAILED", timeout_s=45)
    assert ended["failure"]["error_class"] == "WORKER_LOST" and ended["attempt"] == 1


@pytest.mark.timeout(240)
def test_everything_killed_and_started_again(new_grid: Callable[..., Grid]) -> None:
    grid = new_grid()
    grid.deploy("sleep", SLEEP)
    ids = [grid.submit("sleep", 0.05 * (n % 10)) for n in range(60)] + [grid.submit("sleep", 4) for _ in range(3)]
    time.sleep(0.5)
    grid.kill_everything()
    grid.start()
    for id in ids:
        record = grid.record(id, wait=60)
        assert record["status"] == "SUCCESS", record


@pytest.mark.timeout(180)
def test_a_stopped_grid_goes_on_where_it_stopped(new_grid: Callable[..., Grid]) -> None:
    grid = new_grid(drain_s=1)
    grid.deploy("sleep", SLEEP)
    key = grid.told["key"]
    ids = [grid.submit("sleep", 6) for _ in range(3)]
    grid.until(ids[0], "PROCESSING")
    assert grid.stop() == 0
    grid.start()
    assert grid.told["key"] == key
    for id in ids:
        assert grid.record(id, wait=60)["status"] == "SUCCESS"


@pytest.mark.timeout(120)
def test_a_killed_controller_comes_back_on_the_same_port(new_grid: Callable[..., Grid]) -> None:
    grid = new_grid()
    grid.deploy("sleep", SLEEP)
    id = grid.submit("sleep", 2)
    os.kill(grid.nodes()[0], signal.SIGKILL)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            assert grid.record(id, wait=20)["status"] == "SUCCESS"
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the controller did not come back")
