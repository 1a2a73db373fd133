"""What every launcher and sandbox promises, at every level that is installed."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nanogrid import wire
from nanogrid.errors import SandboxFailed
from nanogrid.model.runtimes import RUNTIMES
from nanogrid.sandbox.base import Limits
from sandbox_driver import LEVELS, Grid, until

ECHO = "def handler(event, context):\n    return {'event': event}\n"


@pytest.fixture(params=LEVELS)
async def grid(request: pytest.FixtureRequest) -> AsyncIterator[Grid]:
    with tempfile.TemporaryDirectory(prefix="ng-") as folder:
        grid = Grid(request.param, Path(folder))
        yield grid
        await grid.close()


async def test_check_starts_a_real_sandbox(grid: Grid) -> None:
    assert await grid.launcher.check() is None
    assert list((grid.run_dir / "sb").iterdir()) == []


async def test_load_and_invoke_more_than_once(grid: Grid) -> None:
    driven = await grid.run(ECHO)
    assert await driven.call({"n": 1}) == {"event": {"n": 1}}
    assert await driven.call([2]) == {"event": [2]}


async def test_code_given_at_launch_is_seen(grid: Grid, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "main.py").write_text(ECHO)
    sandbox = await grid.launcher.launch(RUNTIMES["python3"], Limits(), tmp_path)
    try:
        frames: asyncio.Queue[int] = asyncio.Queue()
        sandbox.on_frame = lambda kind, meta, payload: frames.put_nowait(kind)
        code = str(tmp_path) if grid.level == "process" else "/var/task"
        meta = {"function": "f", "version": 1, "runtime": "python3", "handler": "main.handler", "code": code}
        sandbox.send(wire.LOAD, json.dumps(meta | {"env": {}, "memory_mb": 128}).encode())
        assert await asyncio.wait_for(frames.get(), 10) == wire.LOADED
    finally:
        await sandbox.destroy()


async def test_output_of_an_invocation_is_in_the_pipe_when_its_result_comes(grid: Grid) -> None:
    driven = await grid.run(
        "import sys\ndef handler(e, c):\n    print('out', e)\n    print('err', e, file=sys.stderr)\n    return e\n"
    )
    for n in range(5):
        await driven.call(n)
        driven.sandbox.drain_log()
        assert f"out {n}\n".encode() in driven.log and f"err {n}\n".encode() in driven.log


async def test_a_frozen_sandbox_uses_no_cpu_and_thaws(grid: Grid) -> None:
    driven = await grid.run("def handler(e, c):\n    while True: pass\n")
    driven.invoke()
    await asyncio.sleep(0.3)
    driven.sandbox.freeze()
    driven.sandbox.freeze()
    await asyncio.sleep(0.1)
    before = driven.sandbox.read().cpu_ms
    await asyncio.sleep(0.3)
    still = driven.sandbox.read().cpu_ms
    driven.sandbox.thaw()
    driven.sandbox.thaw()
    await asyncio.sleep(0.4)
    assert still - before < 20
    assert driven.sandbox.read().cpu_ms - still > 50


async def test_a_frozen_sandbox_can_be_destroyed(grid: Grid) -> None:
    driven = await grid.run(ECHO)
    driven.sandbox.freeze()
    started = time.monotonic()
    await driven.sandbox.destroy()
    assert time.monotonic() - started < 5
    assert driven.sandbox.exited.done()


async def test_meters_tell_cpu_and_memory(grid: Grid) -> None:
    source = "import time\ndef handler(e, c):\n    end = time.process_time() + .3\n    b = bytearray(40 << 20)\n"
    driven = await grid.run(source + "    while time.process_time() < end: pass\n    return len(b)\n")
    before = driven.sandbox.read()
    await driven.call()
    after = driven.sandbox.read()
    assert after.cpu_ms - before.cpu_ms > 200
    assert after.memory_peak_mb > 38
    driven.sandbox.reset_peak()
    assert not driven.sandbox.read().oom


async def test_exit_tells_the_status(grid: Grid) -> None:
    driven = await grid.run("import os\ndef handler(e, c):\n    os._exit(7)\n")
    driven.invoke()
    assert await driven.ended() == "exit status 7"


async def test_exit_tells_the_signal(grid: Grid) -> None:
    driven = await grid.run("import os\ndef handler(e, c):\n    os.kill(os.getpid(), 11)\n")
    driven.invoke()
    assert await driven.ended() == "signal 11"


async def test_terminate_reaches_the_handler(grid: Grid) -> None:
    source = "import signal, sys, time\ndef stop(*_):\n    print('stopping', flush=True)\n    sys.exit(3)\n"
    driven = await grid.run(
        source + "signal.signal(15, stop)\ndef handler(e, c):\n    print('on', flush=True)\n    time.sleep(60)\n"
    )
    driven.invoke()
    assert await until(lambda: b"on" in driven.log)
    driven.sandbox.terminate()
    assert await until(lambda: b"stopping" in driven.log)


async def test_out_of_memory_is_told(grid: Grid) -> None:
    source = "import time\ndef handler(e, c):\n    b = bytearray(e << 20)\n    b[::4096] = b'x' * len(b[::4096])\n    time.sleep(5)\n"
    driven = await grid.run(source, Limits(memory_mb=96))
    driven.invoke(300)
    assert await driven.ended() == "out of memory"


async def test_destroy_is_idempotent_and_leaves_nothing(grid: Grid) -> None:
    driven = await grid.run(ECHO)
    await driven.sandbox.destroy()
    await driven.sandbox.destroy()
    assert not driven.sandbox.dir.exists()
    assert driven.sandbox.read().memory_mb == 0
    driven.sandbox.freeze()
    driven.sandbox.thaw()
    driven.sandbox.terminate()
    driven.sandbox.send(wire.INVOKE, b"{}")


async def test_the_socket_takes_one_connection_only(grid: Grid) -> None:
    driven = await grid.boot()
    assert not (driven.sandbox.dir / "s").exists()


async def test_sweep_removes_leftovers(grid: Grid) -> None:
    left = grid.run_dir / "sb" / "dead"
    (left / "code").mkdir(parents=True)
    (left / "code" / "main.py").write_text(ECHO)
    await grid.launcher.sweep()
    assert not left.exists()


@pytest.mark.parametrize("level", ["process", pytest.param("bwrap", marks=pytest.mark.needs("bwrap"))])
async def test_sweep_ends_what_a_killed_worker_left_frozen(level: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ng-") as folder:
        grid, successor = Grid(level, Path(folder)), Grid(level, Path(folder))
        driven = await grid.run(ECHO)
        driven.sandbox.freeze()
        if os.geteuid() == 0:
            assert await successor.launcher.sweep() == 1
            assert await driven.ended() == "signal 9"
        assert await successor.launcher.sweep() <= 1
        assert not driven.sandbox.dir.exists()
        await grid.close()


async def test_many_at_once(grid: Grid) -> None:
    driven = await asyncio.gather(*(grid.run(ECHO) for _ in range(4)))
    assert [await one.call(n) for n, one in enumerate(driven)] == [{"event": n} for n in range(4)]
    assert len({one.sandbox.id for one in driven}) == 4


async def test_descriptors_do_not_leak(grid: Grid) -> None:
    async def once() -> None:
        await (await grid.boot()).sandbox.destroy()

    await once()
    before = len(os.listdir("/proc/self/fd"))
    await once()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("level", ["process", pytest.param("bwrap", marks=pytest.mark.needs("bwrap"))])
async def test_a_bootstrap_that_fails_is_quoted(level: str, tmp_path: Path) -> None:
    from nanogrid.sandbox.bwrap import BwrapLauncher
    from nanogrid.sandbox.process import ProcessLauncher

    runtimes = tmp_path / "runtimes"
    (runtimes / "python3").mkdir(parents=True)
    (runtimes / "python3" / "bootstrap.py").write_text("raise SystemExit('no luck today')\n")
    kind = BwrapLauncher if level == "bwrap" else ProcessLauncher
    with tempfile.TemporaryDirectory(prefix="ng-") as run:
        launcher = kind(Path(run), runtimes, {"python3": ["/usr/bin/python3", "-I"]})
        with pytest.raises(SandboxFailed, match=r"(?s)exit status 1.*no luck today"):
            await launcher.launch(RUNTIMES["python3"], Limits())
        assert list(Path(run, "sb").iterdir()) == []
        await launcher.close()
