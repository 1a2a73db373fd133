"""The pure decisions: retry, placement, growth of the pool, schedules, names, transitions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogrid.invoke.link import Candidate, place
from nanogrid.model.invocation import TERMINAL, TRANSITIONS, ErrorClass, Failure, Status
from nanogrid.model.names import new_id
from nanogrid.model.retry import MAX_DELAY_S, retry_delay_s
from nanogrid.sandbox.pool import sandboxes_to_start
from nanogrid.triggers.schedule import due_times


def failure(kind: ErrorClass) -> Failure:
    return Failure(error_class=kind, type="T", message="m")


@pytest.mark.parametrize("kind", list(ErrorClass))
@pytest.mark.parametrize("trigger", ["sync", "async"])
def test_retry_looks_at_the_class(kind: ErrorClass, trigger: str) -> None:
    delay = retry_delay_s(failure(kind), 1, 2, trigger, 0.5)
    platform = kind in (ErrorClass.WORKER_LOST, ErrorClass.PLATFORM)
    final = kind in (ErrorClass.CANCELLED, ErrorClass.RESULT_INVALID)
    assert (delay is not None) == (platform if trigger == "sync" else not final)


@given(attempt=st.integers(1, 200), retries=st.integers(0, 100), draw=st.floats(0, 1))
def test_retries_end_and_delays_are_bounded(attempt: int, retries: int, draw: float) -> None:
    delay = retry_delay_s(failure(ErrorClass.TIMEOUT), attempt, retries, "async", draw)
    if attempt > retries:
        assert delay is None
    else:
        assert delay is not None and 0 < delay <= MAX_DELAY_S


def test_placement_prefers_warm_then_spreads() -> None:
    assert place([]) is None
    assert place([Candidate(True, 5, 0)]) is None
    assert place([Candidate(False, 0, 9), Candidate(True, 2, 9)]) == 1
    assert place([Candidate(False, 0, 9), Candidate(True, 6, 9)]) == 0
    assert place([Candidate(True, 3, 9), Candidate(True, 1, 9)]) == 1


@given(
    loads=st.lists(st.tuples(st.booleans(), st.integers(0, 50), st.integers(-2, 50)), max_size=6),
)
def test_placement_never_picks_a_full_worker(loads: list[tuple[bool, int, int]]) -> None:
    chosen = place([Candidate(*one) for one in loads])
    if chosen is None:
        assert all(room <= 0 for _, _, room in loads)
    else:
        assert loads[chosen][2] > 0


def test_the_pool_waits_for_short_functions_and_grows_for_long_ones() -> None:
    def start(waiting: int, starting: int, busy: int, mean_ms: float, oldest_ms: float) -> int:
        return sandboxes_to_start(waiting, starting, busy, mean_ms, oldest_ms, cpus=4)

    assert start(waiting=1, starting=0, busy=0, mean_ms=0, oldest_ms=0) == 1
    assert start(waiting=1, starting=1, busy=0, mean_ms=0, oldest_ms=0) == 0
    assert start(waiting=1, starting=0, busy=1, mean_ms=0.3, oldest_ms=0) == 0
    assert start(waiting=10, starting=0, busy=1, mean_ms=0.3, oldest_ms=0) == 3
    assert start(waiting=10, starting=0, busy=4, mean_ms=0.3, oldest_ms=100) == 0
    assert start(waiting=10, starting=0, busy=4, mean_ms=0.3, oldest_ms=300) == 1
    assert start(waiting=10, starting=0, busy=4, mean_ms=500, oldest_ms=0) == 10


def test_schedules_fire_once_in_each_due_moment() -> None:
    start = datetime(2030, 1, 1, 10, 59, 30, tzinfo=UTC).timestamp()
    assert due_times("0 * * * *", start, start + 60) == [start + 30]
    assert due_times("0 * * * *", start + 30, start + 60) == []


def test_ids_sort_by_time_and_are_uuid7() -> None:
    early, late = new_id(1000.0), new_id(1000.002)
    assert early < late
    assert early[14] == "7" and early[19] in "89ab"
    assert len({new_id() for _ in range(1000)}) == 1000


def test_terminal_states_have_no_way_out() -> None:
    assert {status for status, nexts in TRANSITIONS.items() if not nexts} == set(TERMINAL)
    assert set(TRANSITIONS) == set(Status)
