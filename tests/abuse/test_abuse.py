"""Hostile functions against every isolation level that is installed.

Each test is one thing that code in a sandbox may try, and the outcome that `docs/security.md` promises. The
handlers are real: they go in through the Python bootstrap and report what they could do.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nanogrid import wire
from nanogrid.sandbox.base import Limits
from sandbox_driver import ISOLATED, Grid, until

ECHO = "def handler(event, context):\n    return event\n"

TRY = """
import errno
def attempt(action):
    try:
        got = action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "OK" if got is None else f"OK {got!r}"[:300]
"""

CALL = """
import ctypes, platform, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *args):
    ctypes.set_errno(0)
    got = libc.syscall(x86 if platform.machine() == "x86_64" else arm, *args)
    return "OK" if got != -1 else errno.errorcode[ctypes.get_errno()]
"""


@pytest.fixture(params=ISOLATED)
async def grid(request: pytest.FixtureRequest) -> AsyncIterator[Grid]:
    with tempfile.TemporaryDirectory(prefix="ng-") as folder:
        grid = Grid(request.param, Path(folder))
        yield grid
        await grid.close()


async def ask(grid: Grid, source: str, event: object = None, limits: Limits | None = None) -> Any:
    """The result of one handler in a sandbox of its own."""
    return await (await grid.run(source, limits)).call(event)


def rss_mb() -> float:
    """Resident memory of this process, which plays the worker."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


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


# -- network ---------------------------------------------------------------------------------------------


async def test_no_address_can_be_reached(grid: Grid) -> None:
    server = await asyncio.start_server(lambda r, w: w.close(), "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    hosts = ["169.254.169.254", "127.0.0.1", "10.0.0.1", "172.17.0.1", "192.168.0.1", "1.1.1.1"]
    source = TRY + (
        "import socket\n"
        "def tcp(host, port):\n"
        "    with socket.socket() as s:\n        s.settimeout(1)\n        s.connect((host, port))\n"
        "def udp():\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b'x', ('1.1.1.1', 53))\n"
        "def handler(e, c):\n"
        "    answers = {h: attempt(lambda: tcp(h, e['port'])) for h in e['hosts']}\n"
        "    answers['udp'] = attempt(udp)\n"
        "    answers['icmp'] = attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))\n"
        "    answers['dns'] = attempt(lambda: socket.getaddrinfo('example.com', 80))\n"
        "    return answers\n"
    )
    answers = await ask(grid, source, {"port": port, "hosts": hosts})
    server.close()
    assert not [name for name, answer in answers.items() if answer.startswith("OK")], answers


async def test_sockets_of_other_kinds_are_refused(grid: Grid) -> None:
    source = TRY + (
        "import socket\n"
        "KINDS = {'vsock': (40, 1), 'packet': (17, 3), 'netlink': (16, 3), 'raw': (2, 3), 'alg': (38, 5), 'raw6': (10, 3)}\n"
        "def handler(e, c):\n    return {n: attempt(lambda: socket.socket(*k).close()) for n, k in KINDS.items()}\n"
    )
    answers = await ask(grid, source)
    assert set(answers.values()) <= {"EPERM", "EAFNOSUPPORT", "EACCES"}, answers


async def test_an_abstract_socket_of_the_host_is_out_of_reach(grid: Grid) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0nanogrid-abuse")
        server.listen()
        source = TRY + (
            "import socket\n"
            "def handler(e, c):\n    return attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0nanogrid-abuse'))\n"
        )
        assert await ask(grid, source) == "ECONNREFUSED"


# -- processes and the kernel ----------------------------------------------------------------------------


async def test_signals_stay_inside(grid: Grid) -> None:
    neighbour = await grid.run(ECHO)
    source = TRY + (
        "import os, signal\n"
        "def handler(e, c):\n"
        "    signal.signal(15, signal.SIG_IGN)\n"
        "    return [attempt(lambda: os.kill(e, 9)), attempt(lambda: os.kill(1, 9)), attempt(lambda: os.kill(-1, 15))]\n"
    )
    driven = await grid.run(source)
    driven.invoke(os.getpid())
    if grid.level == "bwrap":
        _, _, payload = await driven.frame()
        assert b"ESRCH" in payload
    else:
        await asyncio.sleep(1)
    assert await neighbour.call("alive") == "alive"


async def test_kill_all_ends_only_this_sandbox(grid: Grid) -> None:
    source = (
        "import os, subprocess\n"
        "def handler(e, c):\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        "    os.kill(-1, 9)\n"
        "    return child.wait()\n"
    )
    neighbour = await grid.run(ECHO)
    assert await ask(grid, source) == -9
    assert await neighbour.call("alive") == "alive"


async def test_a_daemon_dies_with_its_sandbox(grid: Grid) -> None:
    name = f"daemon-{os.getpid()}"
    source = (
        "import os, time\n"
        "def handler(e, c):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            open('/proc/self/comm', 'w').write(e)\n"
        "            time.sleep(600)\n"
        "        os._exit(0)\n"
        "    os.wait()\n    time.sleep(.2)\n    return 1\n"
    )
    driven = await grid.run(source)
    assert await driven.call(name[:15]) == 1
    assert running(name[:15])
    await driven.sandbox.destroy()
    assert await until(lambda: not running(name[:15]), 2)


def running(name: str) -> list[str]:
    """Processes of this machine with this name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


async def test_other_processes_cannot_be_read_or_traced(grid: Grid) -> None:
    source = CALL + (
        "import os\n"
        "def handler(e, c):\n"
        "    p = os.getppid() or 1\n"
        "    io = ctypes.create_string_buffer(64)\n"
        "    return [call(101, 117, 16, 1, 0, 0), call(101, 117, 0, 0, 0, 0),\n"
        "            call(310, 270, 1, io, 1, io, 1, 0), call(311, 271, 1, io, 1, io, 1, 0)]\n"
    )
    assert set(await ask(grid, source)) == {"EPERM"}


async def test_no_rights_and_none_to_gain(grid: Grid) -> None:
    source = (
        "import glob, os, subprocess\n"
        "def handler(e, c):\n"
        "    status = dict(l.split(':\\t', 1) for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\n"
        "    su = subprocess.run(['su', '-c', 'id -u'], stdin=subprocess.DEVNULL, capture_output=True).returncode if \\\n"
        "        os.path.exists('/bin/su') else 1\n"
        "    return {k: status[k].strip() for k in\n"
        "            ('NoNewPrivs', 'CapEff', 'CapPrm', 'CapBnd', 'CapAmb', 'Seccomp', 'Uid')} | {'su': su}\n"
    )
    seen = await ask(grid, source)
    assert seen["NoNewPrivs"] == "1" and seen["Seccomp"] == "2" and seen["su"] != 0
    assert {seen[name].strip("0") for name in ("CapEff", "CapPrm", "CapAmb")} == {""}
    assert "0" not in seen["Uid"].split()


async def test_kernel_interfaces_are_refused(grid: Grid) -> None:
    source = CALL + (
        "def handler(e, c):\n"
        "    io = ctypes.create_string_buffer(256)\n"
        "    return {\n"
        "        'mount': call(165, 40, b'none', b'/tmp', b'tmpfs', 0, 0),\n"
        "        'unshare': call(272, 97, 0x10000000), 'setns': call(308, 268, 0, 0),\n"
        "        'pivot_root': call(155, 41, b'/tmp', b'/tmp'), 'chroot': call(161, 51, b'/tmp'),\n"
        "        'clone_newuser': call(56, 220, 0x10000000 | 17, 0, 0, 0, 0),\n"
        "        'io_uring': call(425, 425, 1, io), 'bpf': call(321, 280, 0, io, 64),\n"
        "        'perf': call(298, 241, io, 0, -1, -1, 0), 'keyctl': call(250, 219, 0, -3, 0),\n"
        "        'add_key': call(248, 217, b'user', b'x', b'y', 1, -3),\n"
        "        'userfaultfd': call(323, 282, 0), 'personality': call(135, 92, 0x40000),\n"
        "        'open_by_handle': call(304, 265, 0, io, 0), 'kexec': call(246, 104, 0, 0, 0, 0),\n"
        "        'fsopen': call(430, 430, b'tmpfs', 0), 'reboot': call(169, 142, 0, 0, 0, 0),\n"
        "        'clone3': call(435, 435, io, 88),\n"
        "    }\n"
    )
    answers = await ask(grid, source)
    assert answers.pop("clone3") == "ENOSYS"
    assert set(answers.values()) == {"EPERM"}, answers


async def test_ordinary_programs_still_work(grid: Grid) -> None:
    source = (
        "import concurrent.futures as f, multiprocessing as m, os, sqlite3, ssl, subprocess, tempfile\n"
        "def handler(e, c):\n"
        "    with f.ThreadPoolExecutor(4) as pool: total = sum(pool.map(int, '1234'))\n"
        "    sub = subprocess.run(['sh', '-c', 'echo $((6 * 7))'], capture_output=True, text=True).stdout.strip()\n"
        "    read, write = m.Pipe()\n"
        "    child = m.get_context('fork').Process(target=write.send, args=('child',)); child.start()\n"
        "    got = read.recv(); child.join()\n"
        "    with tempfile.NamedTemporaryFile() as t: db = sqlite3.connect(t.name).execute('select 1').fetchone()[0]\n"
        "    user = 'nobody' in open('/etc/passwd').read()\n"
        "    ssl.create_default_context()\n"
        "    return [total, sub, got, db, len(os.urandom(8)), user]\n"
    )
    assert await ask(grid, source) == [10, "42", "child", 1, 8, True]


async def test_node_boots(grid: Grid) -> None:
    if grid.level == "bwrap" and shutil.which("node") is None:
        pytest.skip("node is not installed")
    await grid.boot(runtime="nodejs")


async def test_devices_are_absent(grid: Grid) -> None:
    source = TRY + (
        "import os, stat\n"
        "def handler(e, c):\n"
        "    answers = {d: attempt(lambda: open(d, 'rb').close()) for d in\n"
        "               ('/dev/mem', '/dev/kvm', '/dev/kmsg', '/dev/fuse', '/dev/sda', '/dev/net/tun', '/proc/kcore')}\n"
        "    answers['mknod'] = attempt(lambda: os.mknod('/tmp/d', 0o600 | stat.S_IFBLK, os.makedev(8, 0)))\n"
        "    return answers\n"
    )
    answers = await ask(grid, source)
    refused = [name for name, answer in answers.items() if not answer.startswith("OK")]
    # Docker lays /dev/null over /proc/kcore, which opens and is empty.
    assert set(answers) - set(refused) <= ({"/proc/kcore"} if grid.level == "docker" else set()), answers


async def test_no_core_file(grid: Grid) -> None:
    source = "import os, resource\ndef handler(e, c):\n    return resource.getrlimit(resource.RLIMIT_CORE)\n"
    assert await ask(grid, source) == [0, 0]
