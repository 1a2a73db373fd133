"""The bootstraps of command functions, driven over their socket as a worker does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from native_driver import script

from nanogrid import wire

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_command_serves(boot, tmp_path) -> None:
    driver = boot()
    text = 'read -r line; echo "note" >&2; echo "{\\"got\\": $line, \\"color\\": \\"$COLOR$LEAK\\", \\"id\\": \\"$NANOGRID_INVOCATION_ID\\"}"'
    kind, meta, _ = driver.load(script(tmp_path, text), "command", "x.sh", COLOR="blue")
    assert kind == wire.LOADED, meta
    for n in range(3):
        assert driver.result(f"{n}\n".encode(), id=f"i-{n}") == {"got": n, "color": "blue", "id": f"i-{n}"}
    assert driver.printed() == "note\n" * 3


@pytest.mark.parametrize(
    ("text", "meta", "payload"),
    [
        ("cat >/dev/null", {}, b"null"),
        ("echo plain words", {"type": "text/plain; charset=utf-8"}, b"plain words\n"),
        ("echo NaN", {"type": "text/plain; charset=utf-8"}, b"NaN\n"),
        ("echo ' [1, 2] '", {}, b"[1, 2]"),
    ],
)
def test_what_a_command_prints_is_the_result(boot, tmp_path, text: str, meta: dict, payload: bytes) -> None:
    driver = boot()
    driver.load(script(tmp_path, text), "command", "x.sh")
    assert driver.call(b"x" * 300_000) == [(wire.RESULT, meta, payload)]


def test_command_failures(boot, tmp_path) -> None:
    driver = boot()
    driver.load(script(tmp_path, 'echo one >&2; echo "no such city" >&2; exit 3'), "command", "x.sh")
    error = driver.error(b"1")
    assert error["type"] == "ExitError"
    assert error["message"] == "x.sh exited with status 3: no such city"
    assert error["stack"] == ["one", "no such city"]
    (tmp_path / "code" / "x.sh").write_text("#!/bin/sh\nkill -9 $$\n")
    assert driver.error(b"1")["message"] == "x.sh was killed by signal 9"
    (tmp_path / "code" / "x.sh").write_text("#!/no/such/shell\n")
    assert driver.error(b"1")["type"] == "StartError"


def test_a_command_may_clean_up_on_sigterm(boot, tmp_path) -> None:
    driver = boot()
    text = "trap 'echo cleaned >&2; exit 9' TERM\necho ready >&2\nwhile :; do sleep 0.05; done"
    driver.load(script(tmp_path, text), "command", "x.sh")
    driver.send(b"1")
    until(lambda: "ready" in driver.printed())
    driver.process.terminate()
    kind, meta, _ = driver.receive()
    assert kind == wire.ERROR and "status 9" in meta["message"]
    assert "cleaned" in driver.printed()
    driver.process.terminate()
    assert driver.process.wait(5) == 128 + 15


def until(check: Callable[[], bool]) -> None:
    for _ in range(500):
        if check():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen within 5 s")


@pytest.mark.parametrize(
    ("runtime", "handler", "said"),
    [
        ("command", "absent.sh", "the code has no file 'absent.sh'"),
        ("command", "../secret.sh", "lies outside the code folder"),
        ("command", "data.txt", "not executable"),
        ("go", "bootstrap", "the code has no file 'bootstrap'"),
    ],
)
def test_what_cannot_be_loaded_says_why(boot, tmp_path, runtime: str, handler: str, said: str) -> None:
    driver = boot()
    code = script(tmp_path, "true")
    (code / "data.txt").write_text("x")
    (tmp_path / "secret.sh").write_text("x")
    kind, meta, _ = driver.load(code, runtime, handler)
    assert kind == wire.LOAD_FAILED and said in meta["message"]
    assert driver.process.wait(5) == 1


def test_a_program_of_another_machine_says_so(boot, tmp_path) -> None:
    driver = boot()
    (tmp_path / "bootstrap").write_bytes(b"\x7fELF garbage")
    (tmp_path / "bootstrap").chmod(0o755)
    kind, meta, _ = driver.load(tmp_path, "cpp")
    assert kind == wire.LOAD_FAILED and "no Linux executable of this machine" in meta["message"]
