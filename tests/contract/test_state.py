"""What every state store promises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from stores import STORES, Clock, Stores, message, open_stores, record

from nanogrid.errors import NotFound
from nanogrid.model.invocation import ErrorClass, Event, Failure, Invocation, Status, message_of
from nanogrid.model.names import new_id
from nanogrid.state.base import WorkerInfo


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
async def pair(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[tuple[Stores, Stores]]:
    """Two processes of one grid."""
    opened = [await open_stores(request.param, tmp_path, clock=clock, ttl_s=3600.0) for _ in range(2)]
    yield opened[0], opened[1]
    for stores in opened:
        await stores.close()


def ended(of: Invocation, **fields: object) -> Invocation:
    return msgspec.structs.replace(of, **{"status": Status.SUCCESS, "result": b"1", **fields})


async def taken(stores: Stores, of: Invocation, worker: str = "w1", lease_s: float = 30.0) -> Invocation:
    claim = await stores.state.claim(message_of(of), worker, lease_s)
    assert claim.granted
    return claim.record


async def test_create_is_seen_by_all_with_its_payload(pair: tuple[Stores, Stores]) -> None:
    one, two = pair
    new = record(event=b"\x00raw\xff")
    assert (await one.state.create(new)).id == new.id
    assert await two.state.get(new.id) == new


async def test_create_again_returns_what_is_stored(pair: tuple[Stores, Stores]) -> None:
    one, two = pair
    new = record()
    await one.state.create(new)
    await taken(one, new)
    assert (await two.state.create(new)).status is Status.PROCESSING


async def test_one_record_an_idempotency_key_and_function(pair: tuple[Stores, Stores]) -> None:
    one, two = pair
    many = [record(idempotency_key="k") for _ in range(20)]
    stored = await asyncio.gather(*(pair[n % 2].state.create(r) for n, r in enumerate(many)))
    assert len({r.id for r in stored}) == 1
    other = record(function="g", idempotency_key="k")
    assert (await one.state.create(other)).id == other.id
    assert len(await two.state.query(function="f")) == 1


async def test_get_of_nothing(pair: tuple[Stores, Stores]) -> None:
    with pytest.raises(NotFound):
        await pair[0].state.get(new_id())


async def test_claim_is_granted_once(pair: tuple[Stores, Stores]) -> None:
    new = record()
    await pair[0].state.create(new)
    claims = await asyncio.gather(*(pair[n % 2].state.claim(message_of(new), f"w{n}", 30.0) for n in range(20)))
    granted = [claim for claim in claims if claim.granted]
    assert len(granted) == 1
    assert granted[0].record.status is Status.PROCESSING
    assert granted[0].record.attempt == 1
    assert all(0 < claim.wait_s <= 30 for claim in claims if not claim.granted)
    assert (await pair[1].state.get(new.id)).worker == granted[0].record.worker


async def test_claim_makes_a_record_that_was_lost(pair: tuple[Stores, Stores]) -> None:
    lost = message(event=b"{}")
    claim = await pair[0].state.claim(lost, "w", 30.0)
    assert claim.granted
    assert (await pair[1].state.get(lost.id)).event == b"{}"


async def test_claim_of_a_second_invocation_with_a_key_spoils_no_other(pair: tuple[Stores, Stores]) -> None:
    first = record(idempotency_key="k")
    await pair[0].state.create(first)
    double, fine = await asyncio.gather(
        pair[0].state.claim(message(idempotency_key="k"), "w", 30.0), pair[0].state.claim(message(), "w", 30.0)
    )
    assert fine.granted
    assert not double.granted
    assert double.record.id == first.id


async def test_an_expired_lease_is_taken_over_and_the_old_attempt_is_fenced(
    pair: tuple[Stores, Stores], clock: Clock
) -> None:
    one, two = pair
    new = record()
    await one.state.create(new)
    old = await taken(one, new, "w1", 10.0)
    clock.now += 9
    assert not (await two.state.claim(message_of(new), "w2", 10.0)).granted
    clock.now += 2
    young = await taken(two, new, "w2", 10.0)
    assert young.attempt == 2
    assert not await one.state.save(ended(old, result=b"old"))
    assert await two.state.save(ended(young, result=b"new"))
    stored = await one.state.get(new.id)
    assert (stored.result, stored.attempt) == (b"new", 2)


async def test_the_first_terminal_state_wins(pair: tuple[Stores, Stores]) -> None:
    new = record()
    await pair[0].state.create(new)
    now = await taken(pair[0], new)
    failed = ended(now, status=Status.FAILED, result=None)
    saved = await asyncio.gather(pair[0].state.save(ended(now)), pair[1].state.save(failed))
    assert sorted(saved) == [False, True]
    assert not (await pair[1].state.claim(message_of(new), "w", 30.0)).granted


async def test_a_retry_waits_until_it_is_due(pair: tuple[Stores, Stores], clock: Clock) -> None:
    new = record()
    await pair[0].state.create(new)
    now = await taken(pair[0], new)
    later = msgspec.structs.replace(now, status=Status.PENDING, not_before=clock.now + 5)
    assert await pair[0].state.save(later)
    claim = await pair[1].state.claim(message_of(new), "w", 30.0)
    assert not claim.granted
    assert claim.wait_s == pytest.approx(5, abs=0.1)
    clock.now += 5.1
    assert (await taken(pair[1], new)).attempt == 2


async def test_concurrency_counts_live_leases_only(pair: tuple[Stores, Stores], clock: Clock) -> None:
    claims = await asyncio.gather(*(pair[n % 2].state.claim(message(), "w", 10.0, concurrency=3) for n in range(9)))
    assert sum(claim.granted for claim in claims) == 3
    assert all(claim.wait_s > 0 for claim in claims if not claim.granted)
    assert (await pair[0].state.claim(message(function="g"), "w", 10.0, concurrency=3)).granted
    clock.now += 11
    assert (await pair[0].state.claim(message(), "w", 10.0, concurrency=3)).granted


async def test_renew_tells_only_what_needs_attention(pair: tuple[Stores, Stores], clock: Clock) -> None:
    one, two = pair
    held, cancelled, over, stolen = [await taken(one, record()) for _ in range(4)]
    await two.state.request_cancel(cancelled.id)
    await two.state.save(ended(over))
    clock.now += 31
    await taken(two, stolen, "w2")
    told = await one.state.renew([(r.id, r.attempt) for r in (held, cancelled, over, stolen)] + [("none", 1)], 30.0)
    assert told == {cancelled.id: "cancel", over.id: "lost", stolen.id: "lost", "none": "lost"}
    assert (await two.state.get(held.id)).lease_until == pytest.approx(clock.now + 30, abs=0.1)
    assert (await two.state.get(cancelled.id)).lease_until == pytest.approx(clock.now + 30, abs=0.1)


async def test_a_note_is_seen_here_at_once_and_by_all_soon(pair: tuple[Stores, Stores]) -> None:
    one, two = pair
    new = record(status=Status.PROCESSING, attempt=1, worker="w")
    one.state.note(new, 0.05)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        # Also while it is being written.
        assert (await one.state.get(new.id)).status is Status.PROCESSING
        await asyncio.sleep(0)
    assert (await two.state.get(new.id)).status is Status.PROCESSING


async def test_a_note_is_read_when_it_is_written(pair: tuple[Stores, Stores]) -> None:
    new = record(status=Status.PROCESSING, attempt=1, worker="w")
    pair[0].state.note(new, 0.05)
    new.status, new.result = Status.SUCCESS, b"2"
    assert [r.status for r in await pair[0].state.query()] == [Status.SUCCESS]
    assert (await pair[1].state.get(new.id)).result == b"2"


async def test_a_refused_note_is_dropped(pair: tuple[Stores, Stores]) -> None:
    new = record()
    await pair[0].state.create(new)
    now = await taken(pair[0], new)
    assert await pair[0].state.save(ended(now))
    pair[1].state.note(ended(now, status=Status.FAILED), 0.01)
    await asyncio.sleep(0.2)
    assert (await pair[1].state.get(new.id)).status is Status.SUCCESS


async def test_a_note_that_cannot_be_stored_spoils_no_other(pair: tuple[Stores, Stores]) -> None:
    fine = record(status=Status.SUCCESS, attempt=1)
    pair[0].state.note(record(status=Status.SUCCESS, attempt=1, log="\ud800"), 0.01)
    pair[0].state.note(fine, 0.01)
    assert await seen(pair[1], fine.id)


async def seen(stores: Stores, id: str) -> bool:
    for _ in range(200):
        try:
            await stores.state.get(id)
            return True
        except NotFound:
            await asyncio.sleep(0.01)
    return False


async def test_close_writes_what_lingers(tmp_path: Path) -> None:
    one, two = await open_stores("sqlite", tmp_path), await open_stores("sqlite", tmp_path)
    new = record(status=Status.SUCCESS, attempt=1)
    one.state.note(new, 60.0)
    await one.close()
    assert (await two.state.get(new.id)).done
    await two.close()


async def test_cancel(pair: tuple[Stores, Stores]) -> None:
    one, two = pair
    waiting, busy = record(), record()
    await one.state.create(waiting)
    await one.state.create(busy)
    now = await taken(one, busy)
    gone = await two.state.request_cancel(waiting.id)
    assert gone.status is Status.FAILED
    assert gone.failure is not None
    assert gone.failure.error_class is ErrorClass.CANCELLED
    asked = await two.state.request_cancel(busy.id)
    assert (asked.status, asked.cancel_requested) == (Status.PROCESSING, True)
    assert await one.state.save(ended(now))
    assert (await two.state.request_cancel(busy.id)).status is Status.SUCCESS
    with pytest.raises(NotFound):
        await one.state.request_cancel(new_id())


async def test_query_filters_and_pages(pair: tuple[Stores, Stores], clock: Clock) -> None:
    ids = [new_id(clock.now + n) for n in range(6)]
    for n, id in enumerate(ids):
        await pair[0].state.create(record(id=id, function="fg"[n % 2], event=b"{}", created_at=clock.now + n))
    dead = await taken(pair[0], await pair[0].state.get(ids[0]))
    failure = Failure(error_class=ErrorClass.FUNCTION_ERROR, type="E", message="m")
    await pair[0].state.save(ended(dead, status=Status.FAILED, result=None, failure=failure, dead_letter=True))
    query = pair[1].state.query
    assert [r.id for r in await query()] == ids[::-1]
    assert [r.id for r in await query(function="g")] == [ids[5], ids[3], ids[1]]
    assert [r.id for r in await query(since=clock.now + 4)] == [ids[5], ids[4]]
    assert [r.id for r in await query(limit=2, before=ids[4])] == [ids[3], ids[2]]
    assert [r.id for r in await query(status=Status.FAILED)] == [ids[0]]
    [letter] = await query(dead_letter=True)
    assert (letter.id, letter.failure, letter.event, letter.result) == (ids[0], failure, b"", None)


async def test_stale(pair: tuple[Stores, Stores], clock: Clock) -> None:
    lost, alive, waiting = record(), record(), record()
    for new in (lost, alive, waiting):
        await pair[0].state.create(new)
    await taken(pair[0], lost, lease_s=2.0)
    await taken(pair[0], alive, lease_s=60.0)
    clock.now += 6
    assert await pair[1].state.stale() == []
    clock.now += 5
    assert {r.id for r in await pair[1].state.stale()} == {lost.id, waiting.id}


async def test_records_end_after_their_time_and_not_before(pair: tuple[Stores, Stores], clock: Clock) -> None:
    over, open_ = record(id=new_id(clock.now)), record(id=new_id(clock.now))
    for new in (over, open_):
        await pair[0].state.create(new)
    clock.now += 3000
    await pair[0].state.save(ended(await taken(pair[0], over)))
    clock.now += 3500
    await pair[0].state.stale()
    assert (await pair[1].state.get(over.id)).done
    clock.now += 200
    await pair[0].state.stale()
    with pytest.raises(NotFound):
        await pair[1].state.get(over.id)
    assert (await pair[1].state.get(open_.id)).status is Status.PENDING


async def collect(stores: Stores, count: int, **which: object) -> list[Event]:
    found: list[Event] = []
    async for event in stores.state.events(**which):  # type: ignore[arg-type]
        found.append(event)
        if len(found) == count:
            break
    return found


async def test_events_live_and_from_a_number_on(pair: tuple[Stores, Stores]) -> None:
    one, two = pair
    live = asyncio.ensure_future(collect(two, 3))
    await asyncio.sleep(0.05)
    new = record()
    await one.state.create(new)
    now = await taken(one, new)
    await one.state.publish([Event(id=new.id, function="f", kind="progress", at=1.0, data={"part": 1})])
    await one.state.save(ended(now))
    await one.state.create(record(function="g"))
    first = await asyncio.wait_for(live, 1.0)
    assert [e.status for e in first] == [Status.PENDING, Status.PROCESSING, None]
    every = await collect(two, 5, after=0)
    assert [e.n for e in every] == sorted({e.n for e in every})
    assert every[:3] == first
    assert [e.kind for e in await collect(two, 3, after=every[0].n, id=new.id)] == ["status", "progress", "status"]
    assert [e.function for e in await collect(two, 1, after=0, function="g")] == ["g"]


async def test_close_ends_event_streams(tmp_path: Path) -> None:
    stores = await open_stores("sqlite", tmp_path)
    live = asyncio.ensure_future(collect(stores, 1))
    await asyncio.sleep(0.05)
    await stores.close()
    assert await asyncio.wait_for(live, 1.0) == []


async def test_wait(pair: tuple[Stores, Stores]) -> None:
    one, two = pair
    many = [record() for _ in range(200)]
    await asyncio.gather(*(one.state.create(r) for r in many))
    assert await two.state.wait(many[0].id, 0.05) is None
    waiters = [asyncio.ensure_future(two.state.wait(r.id, 10.0)) for r in many]
    running = await asyncio.gather(*(taken(one, r) for r in many))
    began = time.monotonic()
    await asyncio.gather(*(one.state.save(ended(r)) for r in running))
    found = await asyncio.gather(*waiters)
    # Below the interval at which a waiter looks by itself: no wake-up of a burst is lost.
    assert time.monotonic() - began < 1.0
    assert all(r is not None and r.result == b"1" for r in found)
    assert await two.state.wait(many[0].id, None) is not None
    with pytest.raises(NotFound):
        await two.state.wait(new_id(), 0.1)


async def test_workers_count_as_gone(pair: tuple[Stores, Stores], clock: Clock) -> None:
    one, two = pair
    for id in ("w1", "w2"):
        await one.state.heartbeat(WorkerInfo(id=id, address="unix:/x", capacity=4, isolation="process"))
    assert [w.id for w in await two.state.workers()] == ["w1", "w2"]
    new = record()
    await one.state.create(new)
    await taken(one, new, "w2", 30.0)
    await two.state.remove_worker("w2")
    assert [w.id for w in await two.state.workers()] == ["w1"]
    assert (await taken(one, new, "w1")).attempt == 2
    clock.now += 16
    assert await two.state.workers() == []


async def test_a_named_lease_has_one_holder(pair: tuple[Stores, Stores], clock: Clock) -> None:
    held = await asyncio.gather(*(pair[n % 2].state.acquire("reaper", f"c{n % 2}", 10.0) for n in range(8)))
    assert set(held[::2]) != set(held[1::2])
    holder = "c0" if held[0] else "c1"
    clock.now += 9
    assert await pair[0].state.acquire("reaper", holder, 10.0)
    clock.now += 9
    assert not await pair[0].state.acquire("reaper", "c9", 10.0)
    clock.now += 2
    assert await pair[1].state.acquire("reaper", "c9", 10.0)
