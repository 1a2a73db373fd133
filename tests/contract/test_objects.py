"""What every object store promises."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nanogrid.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from nanogrid.objects.base import ObjectStore
from nanogrid.objects.local import LocalObjects


@pytest.fixture(params=["local"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    store = LocalObjects(tmp_path / "objects")
    yield store
    await store.close()


async def keys(objects: ObjectStore, prefix: str, after: str = "") -> list[str]:
    return [key async for key in objects.list(prefix, after)]


async def test_put_get_replace_delete(objects: ObjectStore) -> None:
    data = os.urandom(300_000)
    await objects.put("a/b", data)
    assert await objects.get("a/b") == data
    await objects.put("a/b", b"")
    assert await objects.get("a/b") == b""
    await objects.delete("a/b")
    await objects.delete("a/b")
    for gone in ("a/b", "a", "never"):
        with pytest.raises(NotFound):
            await objects.get(gone)


async def test_of_many_creators_one_succeeds(objects: ObjectStore) -> None:
    for turn in range(10):
        puts = [objects.put(f"k/{turn}", bytes([n]), create=True) for n in range(8)]
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        [winner] = [n for n, outcome in enumerate(outcomes) if outcome is None]
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 7
        assert await objects.get(f"k/{turn}") == bytes([winner])


async def test_a_reader_sees_a_whole_object(objects: ObjectStore) -> None:
    await objects.put("k", b"\0" * 500_000)

    async def write() -> None:
        for n in range(40):
            await objects.put("k", bytes([n]) * 500_000)

    writing = asyncio.ensure_future(write())
    while not writing.done():
        data = await objects.get("k")
        assert len(data) == 500_000
        assert data == data[:1] * 500_000
        assert await keys(objects, "") == ["k"]
    await writing


async def test_list(objects: ObjectStore) -> None:
    for key in ("f/b/2", "f/b/1", "f/ab", "f/b-c/1", "g", "f/b/10"):
        await objects.put(key, b"1")
    assert await keys(objects, "f/b/") == ["f/b/1", "f/b/10", "f/b/2"]
    assert await keys(objects, "f/b") == ["f/b-c/1", "f/b/1", "f/b/10", "f/b/2"]
    assert await keys(objects, "f/b/", after="f/b/1") == ["f/b/10", "f/b/2"]
    assert await keys(objects, "") == ["f/ab", "f/b-c/1", "f/b/1", "f/b/10", "f/b/2", "g"]
    assert await keys(objects, "none/") == []


async def test_what_can_be_put_can_be_listed(objects: ObjectStore) -> None:
    names = ["a b", "p%q", "ü", "x~y", "s*t", "$LATEST", "k=v+w"]
    for name in names:
        await objects.put(f"n/{name}", name.encode())
    assert await keys(objects, "n/") == sorted(f"n/{name}" for name in names)
    for name in names:
        assert await objects.get(f"n/{name}") == name.encode()


@pytest.mark.parametrize("key", ["", "/etc/x", "../x", "a/../../x", "a/./b", "a//b", "a/", "a\0b", "a#1"])
async def test_a_key_stays_inside(objects: ObjectStore, key: str) -> None:
    for use in (objects.put(key, b""), objects.get(key), objects.delete(key)):
        with pytest.raises(InvalidRequest):
            await use


@pytest.mark.parametrize("prefix", ["/", "..", "../", "a/../../"])
async def test_a_prefix_stays_inside(objects: ObjectStore, prefix: str) -> None:
    with pytest.raises(InvalidRequest):
        await keys(objects, prefix)


async def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path / "objects")
    (tmp_path / "objects").rmdir()
    (tmp_path / "objects").write_text("no folder")
    with pytest.raises(StoreUnavailable):
        await store.put("a", b"")
