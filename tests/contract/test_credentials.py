"""What the secrets port and the API keys promise."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import stat
import time
from pathlib import Path

import pytest
from stores import Clock

from nanogrid.credentials.base import Secrets
from nanogrid.credentials.file import FileSecrets, random_key_file
from nanogrid.credentials.keys import VERDICT_S, Keys
from nanogrid.errors import InvalidRequest, NotFound, StoreUnavailable


@pytest.fixture(params=["file"])
def secrets(tmp_path: Path) -> Secrets:
    return FileSecrets(tmp_path / "secrets")


async def test_secrets(secrets: Secrets) -> None:
    assert await secrets.list() == []
    await secrets.put("b", "one")
    await secrets.put("a", "zwei \u00fc \u2603")
    await secrets.put("b", "two")
    assert await secrets.list() == ["a", "b"]
    assert await secrets.get("b") == "two"
    assert await secrets.get("a") == "zwei \u00fc \u2603"
    await secrets.delete("b")
    for use in (secrets.get("b"), secrets.delete("b")):
        with pytest.raises(NotFound):
            await use
    with pytest.raises(InvalidRequest):
        await secrets.put("../b", "x")


async def test_no_concurrent_put_is_lost(tmp_path: Path) -> None:
    stores = [FileSecrets(tmp_path / "s") for _ in range(3)]
    await asyncio.gather(*(stores[n % 3].put(f"n{n}", str(n)) for n in range(30)))
    assert len(await stores[0].list()) == 30


async def test_secrets_lie_encrypted_in_private_files(tmp_path: Path) -> None:
    await FileSecrets(tmp_path / "s").put("name-of-it", "value-of-it")
    for file in (tmp_path / "s").iterdir():
        assert b"value-of-it" not in file.read_bytes()
        assert b"name-of-it" not in file.read_bytes()
        if file.suffix != ".lock":
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700


async def test_another_key_is_an_error_and_not_an_empty_store(tmp_path: Path) -> None:
    secrets = FileSecrets(tmp_path)
    await secrets.put("a", "1")
    (tmp_path / "secrets.key").write_bytes(bytes(32))
    for use in (secrets.get("a"), secrets.list(), secrets.put("b", "2")):
        with pytest.raises(StoreUnavailable):
            await use


def _key(path: Path, together: object, found: object) -> None:
    together.wait()  # type: ignore[attr-defined]
    found.put(random_key_file(path))  # type: ignore[attr-defined]


def test_processes_that_start_together_make_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    together, found = context.Barrier(5), context.Queue()
    processes = [context.Process(target=_key, args=(tmp_path / "s" / "key", together, found)) for _ in range(5)]
    for process in processes:
        process.start()
    keys = {found.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["key"]


def test_a_key_is_known_by_its_plaintext_only(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    key, plaintext = keys.create("ci", ["invoke", "read"], functions="web-*")
    assert re.fullmatch(r"ng_[0-9a-f]{8}_[A-Za-z0-9_-]{43}_[0-9a-f]{6}", plaintext)
    assert Keys(tmp_path).verify(plaintext) == key
    assert keys.list() == [key]
    assert "digest" not in key.public()
    for file in tmp_path.iterdir():
        assert plaintext.encode() not in file.read_bytes()
        if file.suffix != ".lock":
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = plaintext.replace(plaintext[20], "A" if plaintext[20] != "A" else "B")
    for wrong in ("", "ng_", plaintext[:-1], plaintext + "0", other, plaintext.upper(), "ü" * 62, plaintext + "\n"):
        assert keys.verify(wrong) is None


def test_scopes(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    key, _ = keys.create("ci", ["invoke"], functions="web-*")
    assert key.allows("invoke", "web-1")
    assert not key.allows("invoke", "api")
    assert not key.allows("deploy", "web-1")
    admin, _ = keys.create("root", ["admin"])
    assert admin.allows("deploy", "anything")
    for scopes in ([], ["root"], ["invoke", "root"]):
        with pytest.raises(InvalidRequest):
            keys.create("x", scopes)


def test_a_key_ends(tmp_path: Path) -> None:
    clock = Clock()
    here, there = Keys(tmp_path, clock), Keys(tmp_path, clock)
    key, plaintext = here.create("a", ["read"])
    brief, brief_text = here.create("b", ["read"], expires_at=clock.now + 60)
    assert there.verify(plaintext) == key
    assert there.verify(brief_text) == brief
    here.revoke(key.id)
    assert here.verify(plaintext) is None
    clock.now += VERDICT_S + 0.1
    assert there.verify(plaintext) is None
    clock.now += 60
    assert there.verify(brief_text) is None
    with pytest.raises(NotFound):
        here.revoke(key.id)
    assert VERDICT_S < 5


def test_a_verdict_is_cheap(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    _, plaintext = keys.create("a", ["read"])
    keys.verify(plaintext)
    began = time.perf_counter()
    for _ in range(10_000):
        keys.verify(plaintext)
    assert (time.perf_counter() - began) / 10_000 < 20e-6
