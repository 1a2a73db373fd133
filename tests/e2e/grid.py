"""A real grid for tests: `nanogrid up` as a user would start it, and a small client."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any

START_S = 120.0


class Answer:
    """Status, headers and body of an HTTP answer."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.body = answer.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Grid:
    """One `nanogrid up` on one data folder; may be stopped, killed and started again."""

    def __init__(self, data: Path, isolation: str, **settings: object) -> None:
        self.data = data
        self.isolation = isolation
        self.settings = {f"NANOGRID_{name.upper()}": str(value) for name, value in settings.items()}
        self.process: subprocess.Popen[str] | None = None
        self.told: dict[str, str] = {}

    def start(self) -> Grid:
        command = [sys.executable, "-m", "nanogrid.cli", "up", "--port", "0"]
        command += ["--data", str(self.data), "--isolation", self.isolation]
        self.data.mkdir(parents=True, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("NANOGRID_")}
        env |= {"XDG_CONFIG_HOME": str(self.data / "config"), **self.settings}
        with (self.data / "up.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        self.told = {}
        assert self.process.stdout is not None
        for line in self.process.stdout:
            name, _, value = line.strip().partition(" ")
            self.told[name] = value
            if name == "ready":
                return self
        raise AssertionError(f"the grid did not start: {self.log()[-4000:]}")

    def log(self) -> str:
        return (self.data / "up.log").read_text()

    def stop(self) -> int:
        """SIGTERM, as an operator would; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=90)

    def nodes(self) -> list[int]:
        """The pids of controller and workers."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def kill_everything(self) -> None:
        """kill -9 of the supervisor, the controller and the workers, at once."""
        assert self.process is not None
        for pid in [self.process.pid, *self.nodes()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def worker_pid(self, worker: str) -> int:
        """The pid of a worker, by its log line."""
        for pid in self.nodes():
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if f"/{worker}/sb/" in os.readlink(fd):
                        return pid
        raise AssertionError(f"no process of {worker}")

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        key: str | None = None,
        timeout: float = 100,
        **headers: str,
    ) -> Answer:
        host, _, port = self.told["URL"].removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
        all_headers = {"Authorization": f"Bearer {key or self.told['key']}", "Content-Type": "application/json"}
        all_headers |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, {k: v for k, v in all_headers.items() if v})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def deploy(self, name: str, files: dict[str, str], **config: Any) -> Answer:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as package:
            for file, text in files.items():
                package.writestr(file, text)
        return self.upload(name, packed.getvalue(), json.dumps({"runtime": "python3", **config}).encode())

    def upload(self, name: str, code: bytes, config: bytes) -> Answer:
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="config"\r\n\r\n'.encode()
        middle = f'\r\n--{edge}\r\nContent-Disposition: form-data; name="code"; filename="c.zip"\r\n\r\n'.encode()
        body = head + config + middle + code + f"\r\n--{edge}--\r\n".encode()
        kind = f"multipart/form-data; boundary={edge}"
        return self.call("PUT", f"/v1/functions/{name}", body, timeout=600, **{"Content-Type": kind})

    def invoke(self, name: str, event: Any = None, **headers: str) -> Answer:
        return self.call("POST", f"/v1/functions/{name}/invocations", json.dumps(event).encode(), **headers)

    def submit(self, name: str, event: Any = None, **headers: str) -> str:
        answer = self.invoke(name, event, Prefer="respond-async", **headers)
        assert answer.status == 202, answer.body
        return str(answer.json["id"])

    def record(self, id: str, wait: float = 0) -> Any:
        answer = self.call("GET", f"/v1/invocations/{id}?wait={wait}")
        assert answer.status == 200, answer.body
        return answer.json

    def until(self, id: str, *statuses: str, timeout_s: float = 30) -> Any:
        """The record once it has one of the statuses."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            record = self.record(id)
            if record["status"] in statuses:
                return record
            time.sleep(0.1)
        raise AssertionError(f"{id} is {record['status']} after {timeout_s} s, and not {statuses}")


def example(folder: Path) -> tuple[bytes, bytes, bytes]:
    """An example project as (zip, config JSON, event)."""
    import tomllib

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as package:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                package.write(path, path.relative_to(folder))
    config = tomllib.loads((folder / "nanogrid.toml").read_text())
    return packed.getvalue(), json.dumps(config).encode(), (folder / "event.json").read_bytes()
