"""The peers: functions-framework under gunicorn, and Celery on Redis, in a virtual environment of their own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from bench.client import BenchError
from bench.processes import Child, free_port, pss_mib, tree

PACKAGES: Final = ("functions-framework==3.10.2", "gunicorn==27.0.1", "celery[redis]==5.7.0", "redis[hiredis]")
CODE: Final = Path(__file__).with_name("peer_code")
THREADS: Final = 8


def install(cache: Path) -> Path:
    """The Python of the peers' environment, which is made when it is not there in these versions.

    Raises:
        BenchError: the packages could not be installed; says why.
    """
    folder = cache / "bench-venv"
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256("\n".join((sys.version, *PACKAGES)).encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    cache.mkdir(parents=True, exist_ok=True)
    uv = [sys.executable, "-m", "uv"]
    for command in (
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [*uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES],
    ):
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode != 0:
            raise BenchError(f"the peers could not be installed: {made.stderr.strip()[-400:]}")
    stamp.write_text(wanted)
    return python


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NANOGRID_", "PYTHON"))}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"} | more


class FunctionsFramework:
    """Google's functions-framework in production mode: gunicorn's gthread, 8 threads a worker."""

    path = "/"
    headers: Final[dict[str, str]] = {}

    def __init__(self, python: Path, workers: int, folder: Path) -> None:
        self.name = f"functions-framework, {workers} worker{'s' if workers > 1 else ''}"
        self.port = free_port()
        argv = [str(python.with_name("functions-framework")), "--source", str(CODE / "echo.py"), "--target", "echo"]
        argv += ["--host", "127.0.0.1", "--port", str(self.port)]
        env = _environment(WORKERS=str(workers), THREADS=str(THREADS))
        self.child = Child(argv, env, folder / f"functions-framework-{workers}.log", folder)
        self.child.wait_for_port(self.port)

    def memory_mib(self) -> float:
        """Of all its processes."""
        return pss_mib(tree(self.child.pid))

    def stop(self) -> None:
        """Ends it."""
        self.child.stop(10.0)


class CeleryPeer:
    """Celery with 2 prefork workers; broker and results in a Redis that writes nothing to disk."""

    name = "Celery + Redis, prefork 2"

    def __init__(self, python: Path, folder: Path) -> None:
        self._children: list[Child] = []
        self._client: subprocess.Popen[str] | None = None
        try:
            self._start(python, folder)
        except BaseException:
            self.stop()
            raise

    def _start(self, python: Path, folder: Path) -> None:
        server = shutil.which("redis-server")
        if server is None:
            raise BenchError("redis-server is not installed, so Celery is left out: apt install redis-server")
        port = free_port()
        argv = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        redis = Child([*argv, "--dir", str(folder)], _environment(), folder / "redis.log", folder)
        self._children.append(redis)
        redis.wait_for_port(port)
        env = _environment(BENCH_REDIS=f"redis://127.0.0.1:{port}/0", PYTHONPATH=str(CODE))
        argv = [str(python.with_name("celery")), "-A", "noop", "worker", "--pool", "prefork", "--concurrency", "2"]
        argv += ["--loglevel", "error", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        self._children.append(Child(argv, env, folder / "celery.log", folder))
        self._client = subprocess.Popen(
            [str(python), str(CODE / "submit.py")],
            env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._order(kind="single", count=20)

    def _order(self, **order: Any) -> dict[str, Any]:
        if self._client is None or self._client.stdin is None or self._client.stdout is None:
            raise BenchError("Celery's client has no pipes")
        self._client.stdin.write(json.dumps(order) + "\n")
        self._client.stdin.flush()
        line = self._client.stdout.readline()
        if not line:
            raise self._children[-1].fail(f"its client ended with status {self._client.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def many(self, count: int) -> float:
        """Invocations a second, from the first submission until all results are stored.

        Raises:
            BenchError: not every one succeeded.
        """
        answer = self._order(kind="many", count=count)
        if answer["success"] != count:
            raise BenchError(f"Celery: {answer['success']} of {count} succeeded")
        return count / float(answer["seconds"])

    def single(self, count: int) -> list[float]:
        """Milliseconds from submission to result, one at a time."""
        return [float(ms) for ms in self._order(kind="single", count=count)["ms"]]

    def memory_mib(self) -> float:
        """Of worker and broker."""
        return sum(pss_mib(tree(child.pid)) for child in self._children)

    def stop(self) -> None:
        """Ends client, worker and broker, in this order."""
        if self._client is not None and self._client.stdin is not None:
            self._client.stdin.close()
            self._client.wait(timeout=30)
        for child in reversed(self._children):
            child.stop(15.0)
            time.sleep(0.1)
