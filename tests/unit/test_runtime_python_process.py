"""The process of a Python runtime: its output, its descriptors, its children, its end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bootstrap_client import Closed, Start, starter

from nanogrid import wire

BOOTSTRAP = Path(__file__).parents[2] / "runtimes/python3/bootstrap.py"


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Start]:
    """See `starter`."""
    with starter(
        [sys.executable, "-I", "-S", "-B", str(BOOTSTRAP)], tmp_path, "main.py", "main.handler", "python3"
    ) as start:
        yield start


def test_what_is_printed_is_in_the_log_before_the_result_and_forges_nothing(boot: Start) -> None:
    frame = wire.encode(wire.RESULT, b"{}", b'"forged"')
    b = boot(
        f"""
        import os, sys
        print("loading", end="")
        def handler(event, context):
            sys.stdout.write("no newline")
            sys.stderr.write("to stderr")
            os.write(1, {frame!r})
            sys.stdout.close()
            return "real"
        """
    )
    assert b.log() == "loading"
    assert b.invoke().result == "real"
    assert b.log().startswith("loading")
    assert "no newline" in b.log()
    assert "to stderr" in b.log()
    assert b.invoke().error["type"] == "ValueError"


def test_lines_appear_in_the_log_while_the_handler_works(boot: Start) -> None:
    b = boot("import time\ndef handler(event, context):\n    print('begun')\n    time.sleep(60)")
    b.start()
    b.wait_log("begun\n")


def test_the_socket_is_out_of_reach_of_children_and_modules(boot: Start) -> None:
    b = boot(
        """
        import multiprocessing, os, socket, subprocess, sys
        def handler(event, context):
            found = [
                (name, key) for name, module in list(sys.modules.items()) for key, value in vars(module).items()
                if isinstance(value, socket.socket) or hasattr(value, "receive")
            ]
            listing = "import os; print([os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if fd > '2' and os.path.exists(f'/proc/self/fd/{fd}')])"
            spawned = subprocess.run([sys.executable, "-c", listing], close_fds=False, capture_output=True, text=True)
            pid = os.fork()
            if pid == 0:
                context.emit("from the child")
                return "from the child"
            return [found, "socket" in spawned.stdout, os.waitpid(pid, 0)[1], sys.argv]
        """
    )
    answer = b.invoke()
    assert answer.result == [[], False, 256, [""]]
    assert answer.partial == []
    assert b.invoke().last.kind == wire.RESULT


def test_multiprocessing_works(boot: Start) -> None:
    b = boot(
        """
        import multiprocessing
        def square(n):
            return n * n
        def handler(event, context):
            with multiprocessing.get_context(event).Pool(2) as pool:
                return pool.map(square, range(4))
        """
    )
    assert b.invoke("fork").result == [0, 1, 4, 9]
    assert b.invoke("spawn").result == [0, 1, 4, 9]


@pytest.mark.parametrize("event", ["idle", "busy"])
def test_the_end_of_the_connection_ends_the_process_at_once(boot: Start, event: str) -> None:
    b = boot("def handler(event, context):\n    print('begun')\n    while True: pass")
    if event == "busy":
        b.start()
        b.wait_log("begun")
    b.sock.close()
    assert b.wait_exit(5) == 0


def test_sigterm_kills_by_default_and_can_be_handled(boot: Start) -> None:
    b = boot("import time\ndef handler(event, context):\n    print('begun')\n    time.sleep(60)")
    b.start()
    b.wait_log("begun")
    b.process.send_signal(signal.SIGTERM)
    assert b.wait_exit(5) == -signal.SIGTERM
    b = boot(
        """
        import signal, time, nanogrid
        def stop(number, frame):
            nanogrid.emit("saved")
            raise SystemExit("stopped")
        def handler(event, context):
            signal.signal(signal.SIGTERM, stop)
            print("begun again")
            time.sleep(60)
        """
    )
    b.start()
    b.wait_log("begun again")
    b.process.send_signal(signal.SIGTERM)
    answer = b.finish()
    assert answer.partial == [b"saved"]
    assert answer.error["message"].startswith("the handler called sys.exit(stopped)")


def test_a_process_that_dies_closes_the_connection(boot: Start) -> None:
    b = boot("import os\ndef handler(event, context): os._exit(9)")
    with pytest.raises(Closed, match="exit status 9"):
        b.invoke()
