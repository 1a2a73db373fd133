"""Hostile functions against every isolation level that is installed.

Each test is one thing that code in a sandbox may try, and the outcome that `docs/security.md` promises. The
handlers are real: they go in through the Python bootstrap and report what they could do.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path

import pytest
from hostile import CALL, ECHO, TRY, ask

from sandbox_driver import Grid, until

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
