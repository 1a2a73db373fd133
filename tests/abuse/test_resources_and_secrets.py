"""Hostile functions against every isolation level that is installed.

Each test is one thing that code in a sandbox may try, and the outcome that `docs/security.md` promises. The
handlers are real: they go in through the Python bootstrap and report what they could do.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from hostile import ECHO, TRY, ask, rss_mb

from nanogrid import wire
from nanogrid.sandbox.base import Limits
from sandbox_driver import Grid, until

# -- resources -------------------------------------------------------------------------------------------


async def test_fork_bomb_stops_at_the_limit(grid: Grid) -> None:
    source = TRY + (
        "import os, time\n"
        "def fork():\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "def handler(e, c):\n"
        "    answers = [attempt(fork) for _ in range(400)]\n"
        "    return [answers.count('OK'), answers.count('EAGAIN')]\n"
    )
    neighbour = await grid.run(ECHO)
    made, refused = await ask(grid, source, limits=Limits(pids=64))
    assert made < 64 and made + refused == 400
    assert await neighbour.call("alive") == "alive"


async def test_too_much_memory_ends_only_this_sandbox(grid: Grid) -> None:
    source = "def handler(e, c):\n    b = bytearray(700 << 20)\n    b[::4096] = b'x' * len(b[::4096])\n    return 1\n"
    neighbour = await grid.run(ECHO)
    driven = await grid.run(source, Limits(memory_mb=128))
    driven.invoke()
    assert await driven.ended(20) == "out of memory"
    assert driven.sandbox.read().memory_peak_mb < 140
    assert await neighbour.call("alive") == "alive"


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
async def test_a_full_scratch_folder_is_refused_at_its_quota(grid: Grid, folder: str) -> None:
    source = TRY + (
        "def fill():\n"
        f"    with open('{folder}/big', 'wb', buffering=0) as file:\n"
        "        for _ in range(1024):\n"
        "            file.write(b'x' * (1 << 20))\n"
        "def handler(e, c):\n    import os\n"
        f"    answer = attempt(fill)\n    return [answer, os.path.getsize('{folder}/big') >> 20]\n"
    )
    answer, size = await ask(grid, source, limits=Limits(memory_mb=512, tmp_mb=64))
    assert answer == "ENOSPC" and size <= 64


async def test_nothing_else_can_be_written(grid: Grid) -> None:
    source = TRY + (
        "import os\n"
        "PLACES = ['/', '/usr', '/etc', '/var/task', '/var/runtime', '/run/nanogrid', '/dev', '/proc', '/var', '/run']\n"
        "def handler(e, c):\n"
        "    answers = {p: attempt(lambda: open(p + '/x', 'w').close()) for p in PLACES}\n"
        "    answers['main.py'] = attempt(lambda: open('/var/task/main.py', 'a').close())\n"
        "    answers['chmod'] = attempt(lambda: os.chmod('/var/task/main.py', 0o777))\n"
        "    return answers\n"
    )
    answers = await ask(grid, source)
    assert not [place for place, answer in answers.items() if answer.startswith("OK")], answers


async def test_sigterm_ignored_then_killed(grid: Grid) -> None:
    source = (
        "import signal\nsignal.signal(15, signal.SIG_IGN)\n"
        "def handler(e, c):\n    print('on', flush=True)\n    while True: pass\n"
    )
    driven = await grid.run(source)
    driven.invoke()
    assert await until(lambda: b"on" in driven.log)
    driven.sandbox.terminate()
    await asyncio.sleep(0.2)
    assert not driven.sandbox.exited.done()
    started = time.monotonic()
    await driven.sandbox.destroy()
    assert time.monotonic() - started < 2


async def test_a_flood_of_output_costs_the_worker_nothing(grid: Grid) -> None:
    source = "import os\ndef handler(e, c):\n    while True: os.write(1 + e % 2, b'x' * 65536)\n"
    for event in (0, 1):
        driven = await grid.run(source)
        before = rss_mb()
        driven.invoke(event)
        assert await until(lambda driven=driven: driven.log_bytes > 16 << 20, 20)
        # The test itself keeps 1 MiB of the output.
        assert rss_mb() - before < 4 + 3
        started = time.monotonic()
        await driven.sandbox.destroy()
        assert time.monotonic() - started < 2


async def test_a_result_cannot_be_forged_on_stdout(grid: Grid) -> None:
    forged = wire.encode(wire.RESULT, b"{}", b'"forged"')
    source = (
        "import os, socket, subprocess, sys\n"
        f"FRAME = {forged!r}\n"
        "def again():\n"
        "    s = socket.socket(socket.AF_UNIX)\n"
        "    s.connect('/run/nanogrid/s')\n"
        "    s.sendall(FRAME)\n"
        "def handler(e, c):\n"
        "    os.write(1, FRAME); os.write(2, FRAME)\n"
        "    child = 'import os\\nfor fd in range(3, 64):\\n  try: os.write(fd, bytes.fromhex(%r))\\n  except OSError: pass'\n"
        "    subprocess.run([sys.executable or '/usr/bin/python3', '-c', child % FRAME.hex()], close_fds=False)\n"
        "    try: again()\n"
        "    except OSError: return 'honest'\n"
        "    return 'connected'\n"
    )
    driven = await grid.run(source)
    assert await driven.call() == "honest"
    assert driven.frames.empty()


# -- what can be seen ------------------------------------------------------------------------------------


async def test_no_environment_but_the_declared(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_SECRET", "swordfish-0451")
    source = (
        "import glob, os\n"
        "def handler(e, c):\n"
        "    texts = {}\n"
        "    for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):\n"
        "        try: texts[path] = open(path, 'rb').read().decode(errors='replace')\n"
        "        except OSError as error: texts[path] = str(error)\n"
        "    return {'env': dict(os.environ), 'texts': texts}\n"
    )
    driven = await grid.run(source, env={"DECLARED": "yes"})
    seen = await driven.call()
    allowed = {"DECLARED", "PATH", "HOME", "LANG", "TMPDIR"}
    allowed |= {"NANOGRID_FUNCTION", "NANOGRID_VERSION", "NANOGRID_MEMORY_MB"}
    # Python itself coerces the locale (PEP 538).
    assert set(seen["env"]) - {"LC_CTYPE"} == allowed
    everything = " ".join(seen["texts"].values())
    assert "swordfish" not in everything
    assert str(grid.run_dir) not in everything


async def test_only_own_processes_are_listed(grid: Grid) -> None:
    source = "import os\ndef handler(e, c):\n    return [p for p in os.listdir('/proc') if p.isdigit()]\n"
    assert len(await ask(grid, source)) <= 3


async def test_the_hosts_files_are_not_there(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("swordfish-0451")
    other = await grid.run("OTHER = 'swordfish-0451'\n" + ECHO)
    places = [
        str(tmp_path / "secret"),
        str(other.sandbox.dir / "code" / "main.py"),
        str(grid.run_dir),
        "/etc/shadow",
        "/root/.ssh",
        "/home",
        "/var/lib",
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/sys/kernel/security",
    ]
    source = (
        "import os\n"
        "def readable(p):\n"
        "    try:\n"
        "        return bool(os.listdir(p)) if os.path.isdir(p) else bool(open(p, 'rb').read(1)) or True\n"
        "    except OSError: return False\n"
        "def handler(e, c):\n    return [p for p in e if readable(p)]\n"
    )
    seen = await ask(grid, source, places)
    # An image has folders of its own there; they hold nothing of the host.
    assert [place for place in seen if not (grid.level == "docker" and place in ("/var/lib", "/home"))] == []


async def test_no_descriptors_of_the_worker(grid: Grid) -> None:
    source = (
        "import os\n"
        "def handler(e, c):\n"
        "    found = []\n"
        "    for fd in os.listdir('/proc/self/fd'):\n"
        "        try: found.append(os.readlink('/proc/self/fd/' + fd))\n"
        "        except OSError: pass\n"
        "    return found\n"
    )
    found = await ask(grid, source)
    other = [f for f in found if not f.startswith(("/dev/null", "socket:", "pipe:", "/proc/", "anon_inode:"))]
    assert [f for f in other if not f.endswith(("/log", "/dev/null"))] == [], found
    assert sum(f.startswith("socket:") for f in found) == 1


async def test_the_next_sandbox_has_nothing_of_the_last(grid: Grid) -> None:
    source = (
        "import builtins, os, subprocess\n"
        "def handler(e, c):\n"
        "    seen = [hasattr(builtins, 'mark'), os.path.exists('/tmp/mark'), os.path.exists('/dev/shm/mark'),\n"
        "            os.environ.get('MARK', ''), len([p for p in os.listdir('/proc') if p.isdigit()]) > 3]\n"
        "    builtins.mark = 1\n"
        "    open('/tmp/mark', 'w').close(); open('/dev/shm/mark', 'w').close()\n"
        "    os.environ['MARK'] = 'x'\n"
        "    subprocess.Popen(['sleep', '60'])\n"
        "    return seen\n"
    )
    clean = [False, False, False, "", False]
    first = await grid.run(source)
    assert await first.call() == clean
    beside = await grid.run(source)
    assert await beside.call() == clean
    await first.sandbox.destroy()
    assert await ask(grid, source) == clean
