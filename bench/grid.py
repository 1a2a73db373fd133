"""A grid of the benchmark's own: started as a user starts it, used over HTTP as a user uses it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.client import BenchError, Connection, Reply, request
from bench.functions import MARK, Source, multipart, package
from bench.processes import Child, all_pids, comm, cpu_s, free_port, parent, pss_mib, tree

COMMAND: Final = str(Path(sys.executable).with_name("nanogrid"))
START_S: Final = 600.0
"""The first start with docker builds images."""
DEPLOY_S: Final = 300.0
SETTLE_S: Final = 3.0
"""After the start, until the first spare sandboxes are there."""
RECORD_S: Final = 2.0
JSON_TYPE: Final = {"content-type": "application/json"}


class LevelMissing(BenchError):
    """This machine cannot offer the isolation level; the text is what the grid said."""


class Grid:
    """One grid at one isolation level, with a data folder of its own under /var/tmp.

    Not under /tmp, which may be in memory: what is durable must have gone to a disk here as well.
    """

    def __init__(self, level: str, command: str = COMMAND) -> None:
        """
        Raises:
            LevelMissing: the level cannot be had here.
            BenchError: the grid did not start for another reason.
        """
        self.level = level
        self.name = f"nanogrid, {level}"
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="nanogrid-bench-", dir="/var/tmp"))
        # Sandboxes belong to another user, who must get through to their own folders.
        self.folder.chmod(0o755)
        argv = [command, "up", "--port", str(self.port), "--data", str(self.folder / "data"), "--isolation", level]
        # Settings of the caller would change what is measured, and the caller's profile must stay as it is.
        env = {name: value for name, value in os.environ.items() if not name.startswith("NANOGRID_")}
        env["XDG_CONFIG_HOME"] = str(self.folder / "config")
        self.child = Child(argv, env, self.folder / "grid.log", pipe=True)
        self._control: Connection | None = None
        self._deployed = 0
        try:
            began = time.monotonic()
            self._read_start()
            self.start_s = time.monotonic() - began
        except BaseException:
            self.stop()
            raise

    def _read_start(self) -> None:
        told: dict[str, str] = {}
        out = self.child.process.stdout
        if out is None:
            raise BenchError("the grid has no output")
        until, pending = time.monotonic() + START_S, b""
        while "ready" not in told:
            if not select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
                raise self.child.fail(f"not ready within {START_S:g} s")
            data = os.read(out.fileno(), 4096)
            if not data:
                self.child.process.wait(timeout=30)
                kind = LevelMissing if "no isolation level works" in self.child.tail() else BenchError
                raise kind(str(self.child.fail("it did not start")))
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                word, _, rest = line.decode(errors="replace").strip().partition(" ")
                told[word] = rest.strip()
        if told.get("isolation") != self.level:
            raise BenchError(f"asked for isolation {self.level}, the grid says {told.get('isolation')!r}")
        if "key" not in told or not told.get("URL", "").endswith(f":{self.port}"):
            raise BenchError(f"the grid did not tell its URL and key: {sorted(told)}")
        self.headers = {"authorization": f"Bearer {told['key']}"}

    # -- the API --------------------------------------------------------------------------------------

    def connect(self) -> Connection:
        """A new connection to the controller."""
        return Connection("127.0.0.1", self.port, DEPLOY_S)

    def raw(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        """The bytes of a request with the key in it."""
        return request(method, path, body, {**self.headers, **(headers or {})})

    def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        expect: Sequence[int] = (200,),
    ) -> Reply:
        """One request of the control plane; raises BenchError on any other status than expected."""
        raw = self.raw(method, path, body, headers)
        if self._control is None:
            self._control = self.connect()
        try:
            reply = self._control.call(raw)
        except (OSError, BenchError):
            self._control.close()
            self._control = self.connect()
            reply = self._control.call(raw)
        if reply.status not in expect:
            raise BenchError(
                f"{self.name}: {method} {path} answered {reply.status}: {reply.body[:400].decode(errors='replace')}"
            )
        return reply

    def deploy(self, source: Source, name: str | None = None) -> str:
        """Deploys a function that no grid has seen before; returns its name."""
        self._deployed += 1
        name = name or f"{source.runtime}-{self._deployed}"
        nonce = f"{self.level} {name} {time.time_ns()}"
        body, kind = multipart({"name": name, "runtime": source.runtime}, package(source, nonce))
        self.call("PUT", f"/v1/functions/{name}", body, {"content-type": kind}, expect=(200, 201))
        return name

    @staticmethod
    def path(name: str) -> str:
        """Where a function is invoked."""
        return f"/v1/functions/{name}/invocations"

    def record(self, id: str) -> dict[str, Any]:
        """The record of an invocation that ended; of a synchronous call it is stored a moment after the answer."""
        until = time.monotonic() + RECORD_S
        while True:
            reply = self.call("GET", f"/v1/invocations/{id}?wait={RECORD_S:g}", expect=(200, 404))
            record: dict[str, Any] = reply.json()
            if reply.status == 200 and record["status"] in ("SUCCESS", "FAILED"):
                return record
            if time.monotonic() > until:
                raise BenchError(f"{self.name}: no ended record of invocation {id} after {RECORD_S:g} s, but {record}")
            time.sleep(0.02)

    def records(self, function: str, since: float, status: str | None = None, limit: int = 0) -> list[dict[str, Any]]:
        """All records of a function from `since` (epoch seconds) on; at most `limit` if that is set."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            query = f"?function={function}&since={since:.3f}&limit={limit or 1000}"
            query += f"&status={status}" if status else ""
            query += f"&cursor={cursor}" if cursor else ""
            page = self.call("GET", f"/v1/invocations{query}").json()
            found += page["invocations"]
            cursor = page.get("cursor") or ""
            if limit or not cursor:
                return found

    def batch(self, function: str, events: list[bytes]) -> list[str]:
        """Submits many events in one request; returns the ids."""
        body = b"[" + b",".join(events) + b"]"
        answer = self.call("POST", f"{self.path(function)}:batch", body, JSON_TYPE, expect=(202,)).json()
        return [entry["id"] for entry in answer["invocations"]]

    # -- its processes --------------------------------------------------------------------------------

    def pids(self) -> set[int]:
        """All processes of the grid, those of its containers included."""
        found = tree(self.child.pid)
        for pid in self._containers():
            found |= tree(pid)
        return found

    def _containers(self) -> list[int]:
        """The shims of this grid's containers, each with a container below it."""
        if self.level != "docker":
            return []
        shown = '{{.ID}} {{.Label "nanogrid.grid"}}'
        asked = ["docker", "ps", "--no-trunc", "--filter", "label=nanogrid.grid", "--format", shown]
        lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
        ids = [line.split()[0] for line in lines if f"{self.folder}/" in line]
        if not ids:
            # Its spare sandboxes at least must be there; without them every sum would be too small.
            raise BenchError(f"{self.name}: none of the {len(lines)} containers of grids belongs to {self.folder}")
        inspect = ["docker", "inspect", "--format", "{{.State.Pid}}", *ids]
        # One that ended in between makes inspect complain; the others are told all the same.
        told = subprocess.run(inspect, capture_output=True, text=True).stdout.split()
        return [parent(int(pid)) for pid in told if int(pid) > 0 and parent(int(pid)) > 1]

    def marked_sandboxes(self) -> list[set[int]]:
        """The processes of each sandbox whose function marked itself: from the handler's up to the grid's own."""
        own = self._nodes()
        mine = self.pids()
        sandboxes = []
        for pid in all_pids():
            if pid not in mine or comm(pid) != MARK:
                continue
            chain = set[int]()
            at = pid
            while at > 1 and at not in own and at in mine:
                chain.add(at)
                at = parent(at)
            sandboxes.append(chain)
        return sandboxes

    def _nodes(self) -> set[int]:
        """The supervisor, and what it started: the controller and the workers."""
        root = self.child.pid
        return {root} | {pid for pid in tree(root) if parent(pid) == root}

    def memory_mib(self) -> float:
        """Of everything that belongs to the grid."""
        return pss_mib(self.pids())

    def cpu_s(self) -> dict[int, float]:
        """CPU seconds by process."""
        return cpu_s(self.pids())

    def stop(self) -> None:
        """Ends the grid and removes its data."""
        if self._control is not None:
            self._control.close()
        self.child.stop(90.0)
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)

    def describe(self) -> dict[str, Any]:
        """What a reader of the numbers wants to know of this grid."""
        return {"level": self.level, "start_s": round(self.start_s, 2), "workers": len(self._workers())}

    def _workers(self) -> list[Any]:
        workers: list[Any] = json.loads(self.call("GET", "/v1/workers").body)["workers"]
        return workers
