"""What every registry promises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import Clock

from nanogrid.errors import Conflict, InvalidRequest, NotFound
from nanogrid.model.function import Alias, FunctionConfig, Version
from nanogrid.objects.local import LocalObjects
from nanogrid.registry.objects import ObjectRegistry


class Wire:
    """What tells two registries of each other's changes; `cut` loses everything."""

    def __init__(self) -> None:
        self.cut = False
        self._listeners: list[Callable[[str, bytes], None]] = []

    def publish(self, topic: str) -> None:
        for listener in self._listeners if not self.cut else ():
            listener(topic, b"")

    def subscribe(self, topic: str, listener: Callable[[str, bytes], None]) -> None:
        self._listeners.append(listener)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture(params=["objects"])
def pair(tmp_path: Path, clock: Clock, wire: Wire) -> tuple[ObjectRegistry, ObjectRegistry]:
    """Two processes on one store."""
    one, two = (
        ObjectRegistry(LocalObjects(tmp_path / "objects"), wire.publish, wire.subscribe, clock) for _ in range(2)
    )
    return one, two


def version(name: str = "f", code: str = "a") -> Version:
    return Version(
        function=name, number=99, config=FunctionConfig(name=name, runtime="python3"), code_key=f"code/{code}",
        code_sha256=code, code_size=1, created_at=1.0,
    )  # fmt: skip


Pair = tuple[ObjectRegistry, ObjectRegistry]


async def test_publish_numbers_versions_itself(pair: Pair) -> None:
    assert (await pair[0].publish(version())).latest == 1
    second = await pair[1].publish(version(code="b"))
    assert second.latest == 2
    assert {n: v.number for n, v in second.versions.items()} == {"1": 1, "2": 2}
    assert await pair[0].get("f") == second
    assert [f.name for f in await pair[0].list()] == ["f"]


async def test_no_concurrent_change_is_lost(pair: Pair) -> None:
    await asyncio.gather(*(pair[n % 2].publish(version(code=str(n))) for n in range(8)))
    function = await pair[0].refresh("f")
    assert sorted(v.code_sha256 for v in function.versions.values()) == [str(n) for n in range(8)]
    assert function.latest == 8


async def test_resolve(pair: Pair) -> None:
    one = pair[0]
    for code in "abc":
        await one.publish(version(code=code))
    await one.set_alias("f", "live", Alias(version=1, weights={"2": 0.25}))
    assert one.resolve("f", "$LATEST", 0.5).number == 3
    assert one.resolve("f", "2", 0.5).number == 2
    assert [one.resolve("f", "live", draw).number for draw in (0.0, 0.24, 0.25, 0.99, 1.0)] == [2, 2, 1, 1, 1]
    for qualifier in ("4", "dead", ""):
        with pytest.raises(NotFound, match=r"1, 2, 3, live and \$LATEST"):
            one.resolve("f", qualifier, 0.5)


async def test_aliases(pair: Pair) -> None:
    await pair[0].publish(version())
    with pytest.raises(NotFound, match="no version 2"):
        await pair[0].set_alias("f", "live", Alias(version=2))
    with pytest.raises(NotFound, match="no version 3"):
        await pair[0].set_alias("f", "live", Alias(version=1, weights={"3": 0.5}))
    with pytest.raises(InvalidRequest):
        await pair[0].set_alias("f", "7", Alias(version=1))
    with pytest.raises(InvalidRequest):
        await pair[0].set_alias("f", "live", Alias(version=1, weights={"1": 1.5}))
    await pair[0].set_alias("f", "live", Alias(version=1))
    assert "live" in (await pair[1].get("f")).aliases
    assert (await pair[1].delete_alias("f", "live")).aliases == {}
    with pytest.raises(NotFound):
        await pair[0].delete_alias("f", "live")


async def test_rollback(pair: Pair) -> None:
    for code in "ab":
        await pair[0].publish(version(code=code))
    assert (await pair[1].rollback("f", 1)).latest == 1
    assert (await pair[0].get("f")).latest == 1
    with pytest.raises(NotFound):
        await pair[0].rollback("f", 3)
    assert (await pair[0].publish(version(code="c"))).latest == 3


async def test_delete_and_come_back(pair: Pair) -> None:
    one, two = pair
    await one.publish(version())
    await one.set_alias("f", "live", Alias(version=1))
    await two.delete("f")
    for gone in (one.get("f"), one.refresh("f"), one.delete("f"), one.rollback("f", 1), one.delete_alias("f", "live")):
        with pytest.raises(NotFound):
            await gone
    assert await one.list() == []
    with pytest.raises(NotFound):
        one.resolve("f", "$LATEST", 0.5)
    back = await one.publish(version(code="b"))
    assert back.latest == 2
    assert back.aliases == {}


async def test_what_never_was(pair: Pair) -> None:
    assert pair[0].cached("f") is None
    with pytest.raises(NotFound):
        await pair[0].get("f")
    with pytest.raises(InvalidRequest):
        await pair[0].get("../f")
    assert await pair[0].list() == []


async def test_names_that_begin_alike_are_apart(pair: Pair) -> None:
    for name in ("f", "f-1", "f_1", "F"):
        await pair[0].publish(version(name))
    assert [f.name for f in await pair[1].list()] == sorted(["f", "f-1", "f_1", "F"])
    assert (await pair[1].get("f")).versions.keys() == {"1"}


async def test_others_see_a_change_at_once(pair: Pair) -> None:
    await pair[0].publish(version())
    await pair[1].get("f")
    await pair[0].publish(version(code="b"))
    assert pair[1].cached("f") is None
    assert (await pair[1].get("f")).latest == 2


async def test_others_see_a_change_within_5_s_when_told_nothing(pair: Pair, clock: Clock, wire: Wire) -> None:
    await pair[0].publish(version())
    await pair[1].get("f")
    wire.cut = True
    await pair[0].publish(version(code="b"))
    clock.now += 4.9
    assert (await pair[1].get("f")).latest == 1
    assert (await pair[1].refresh("f")).latest == 2
    await pair[0].delete("f")
    clock.now += 5.1
    with pytest.raises(NotFound):
        await pair[1].get("f")


async def test_a_writer_that_always_loses_is_told(tmp_path: Path) -> None:
    class Contended(LocalObjects):
        async def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            raise Conflict("another was first")

    with pytest.raises(Conflict, match="too many"):
        await ObjectRegistry(Contended(tmp_path)).publish(version())
