"""What every queue promises."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stores import STORES, Clock, Stores, message, open_stores

from nanogrid.model.invocation import Status
from nanogrid.queues.base import Depth


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
async def pair(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[tuple[Stores, Stores]]:
    opened = [await open_stores(request.param, tmp_path, clock=clock) for _ in range(2)]
    yield opened[0], opened[1]
    for stores in opened:
        await stores.close()


@pytest.fixture(params=STORES)
async def live(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Stores, Stores]]:
    """On real time, in a folder whose path is longer than a socket's may be."""
    folder = tmp_path / ("x" * 80) / ("y" * 80)
    folder.mkdir(parents=True)
    opened = [await open_stores(request.param, folder) for _ in range(2)]
    yield opened[0], opened[1]
    for stores in opened:
        await stores.close()


async def test_a_message_comes_whole_in_order_and_once(pair: tuple[Stores, Stores]) -> None:
    one, two = pair
    sent = [message(event=bytes([n])) for n in range(5)]
    await one.queue.send(sent)
    first = await two.queue.receive(3, 30.0)
    rest = await one.queue.receive(10, 30.0)
    assert [d.message for d in first + rest] == sent
    assert {d.deliveries for d in first + rest} == {1}
    assert await two.queue.receive(10, 30.0) == []


async def test_a_hidden_message_comes_back(pair: tuple[Stores, Stores], clock: Clock) -> None:
    await pair[0].queue.send([message()])
    [first] = await pair[0].queue.receive(1, 30.0)
    clock.now += 29
    assert await pair[1].queue.receive(1, 30.0) == []
    clock.now += 2
    [second] = await pair[1].queue.receive(1, 30.0)
    assert (second.message, second.deliveries) == (first.message, 2)
    # The first receipt is stale now.
    await pair[0].queue.delete([first.receipt])
    await pair[0].queue.extend([first.receipt], 0.0)
    assert await pair[0].queue.depth() == Depth(0, 1)
    await pair[1].queue.delete([second.receipt])
    assert await pair[0].queue.depth() == Depth(0, 0)


async def test_extend(pair: tuple[Stores, Stores], clock: Clock) -> None:
    await pair[0].queue.send([message()])
    [held] = await pair[0].queue.receive(1, 30.0)
    clock.now += 20
    await pair[0].queue.extend([held.receipt], 30.0)
    clock.now += 20
    assert await pair[1].queue.receive(1, 30.0) == []
    await pair[0].queue.extend([held.receipt], 0.0)
    assert len(await pair[1].queue.receive(1, 30.0)) == 1


async def test_delay_and_depth(pair: tuple[Stores, Stores], clock: Clock) -> None:
    await pair[0].queue.send([message(), message()])
    await pair[0].queue.send([message()], delay_s=10.0)
    await pair[0].queue.receive(1, 30.0)
    assert await pair[1].queue.depth() == Depth(1, 1)
    assert len(await pair[1].queue.receive(10, 30.0)) == 1
    clock.now += 11
    assert await pair[1].queue.depth() == Depth(1, 2)
    assert len(await pair[1].queue.receive(10, 30.0)) == 1


async def test_nothing_to_do(pair: tuple[Stores, Stores]) -> None:
    await pair[0].queue.send([])
    await pair[0].queue.extend([], 30.0)
    await pair[0].queue.delete([])
    assert await pair[0].queue.depth() == Depth(0, 0)


async def test_a_cancelled_receiver_neither_loses_nor_doubles(pair: tuple[Stores, Stores], clock: Clock) -> None:
    one, two = pair
    await one.queue.send([message()])
    for turns in range(6):
        receiver = asyncio.ensure_future(one.queue.receive(1, 30.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        receiver.cancel()
        done = (await asyncio.gather(receiver, return_exceptions=True))[0]
        if isinstance(done, list) and done:
            await one.queue.extend([done[0].receipt], 0.0)
        await asyncio.sleep(0.05)
    clock.now += 31
    assert len(await two.queue.receive(1, 30.0)) == 1
    assert await one.queue.receive(1, 30.0) == []


async def test_a_receiver_in_another_process_wakes_at_once(live: tuple[Stores, Stores]) -> None:
    one, two = live
    waits = []
    await asyncio.sleep(0.6)
    for _ in range(10):
        receiver = asyncio.ensure_future(two.queue.receive(1, 30.0, 10.0))
        await asyncio.sleep(0.03)
        began = time.monotonic()
        await one.queue.send([message()])
        assert len(await receiver) == 1
        waits.append(time.monotonic() - began)
    # Well below the interval at which a receiver looks by itself.
    assert sorted(waits)[5] < 0.2


async def test_a_receiver_wakes_when_a_delay_ends(live: tuple[Stores, Stores]) -> None:
    await live[0].queue.send([message()], delay_s=0.4)
    began = time.monotonic()
    assert len(await live[1].queue.receive(1, 30.0, 5.0)) == 1
    assert 0.35 < time.monotonic() - began < 0.7


async def test_wait_ends(live: tuple[Stores, Stores]) -> None:
    began = time.monotonic()
    assert await live[0].queue.receive(1, 30.0, 0.3) == []
    assert 0.25 < time.monotonic() - began < 1.0


async def test_close_ends_waiting_receivers(tmp_path: Path) -> None:
    stores = await open_stores("sqlite", tmp_path)
    receiver = asyncio.ensure_future(stores.queue.receive(1, 30.0, 30.0))
    await asyncio.sleep(0.05)
    await stores.close()
    assert await asyncio.wait_for(receiver, 1.0) == []


HAMMER = """
import asyncio, json, sys
from pathlib import Path
from stores import open_stores, message
async def main():
    stores = await open_stores("sqlite", Path(sys.argv[1]))
    got = []
    async def send():
        for _ in range(50):
            await stores.queue.send([message(), message()])
    async def receive():
        while found := await stores.queue.receive(7, 600.0, 1.0):
            got.extend(d.message.id for d in found)
            claims = await asyncio.gather(*(stores.state.claim(d.message, "w", 600.0) for d in found))
            assert all(claim.granted for claim in claims)
            await stores.queue.delete([d.receipt for d in found])
    await asyncio.gather(*(send() for _ in range(4)), *(receive() for _ in range(4)))
    await stores.close()
    print(json.dumps(got))
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", STORES)
async def test_processes_that_hammer_get_each_message_once(kind: str, tmp_path: Path) -> None:
    """All open the new store at the same moment, too."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    hammers = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    got: Counter[str] = Counter()
    for hammer in hammers:
        out, problems = await asyncio.to_thread(hammer.communicate, timeout=60)
        assert hammer.returncode == 0, problems
        assert "locked" not in problems
        got.update(json.loads(out))
    assert len(got) == 3 * 4 * 50 * 2
    assert set(got.values()) == {1}


async def test_no_write_is_forgotten_between_threads(tmp_path: Path) -> None:
    """A thread switch at any point of a write must not separate it from its group."""
    stores = await open_stores("sqlite", tmp_path)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            writes = []
            for _ in range(40):
                writes.append(stores.engine.write(lambda connection: None))
                await asyncio.sleep(0)
            _, forgotten = await asyncio.wait(writes, timeout=10.0)
            assert not forgotten
    finally:
        sys.setswitchinterval(interval)
        await stores.close()


CREATES = """
import asyncio, sys
from pathlib import Path
from stores import open_stores, record, message
async def main():
    stores = await open_stores("sqlite", Path(sys.argv[1]))
    async def one():
        while True:
            new = record()
            await asyncio.gather(stores.state.create(new), stores.queue.send([message(id=new.id)]))
            print(new.id, flush=True)
    await asyncio.gather(*(one() for _ in range(16)))
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", STORES)
async def test_what_was_acknowledged_outlives_kill_9(kind: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", CREATES, str(tmp_path)], stdout=subprocess.PIPE, env=env, text=True
    )
    assert process.stdout is not None
    ids = [process.stdout.readline().strip() for _ in range(300)]
    process.send_signal(signal.SIGKILL)
    ids += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    stores = await open_stores(kind, tmp_path)
    for id in ids:
        assert (await stores.state.get(id)).status is Status.PENDING
    queued: set[str] = set()
    while found := await stores.queue.receive(500, 60.0):
        queued |= {delivery.message.id for delivery in found}
    assert set(ids) <= queued
    await stores.close()
