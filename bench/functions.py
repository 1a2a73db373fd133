"""The functions that the benchmark deploys: the smallest handler of each language, zipped in memory."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any, Final, NamedTuple

MARK: Final = "ngbench"
"""The name that the process of a marked function takes, so that its sandbox can be found among all processes."""

PYTHON_ECHO = "def handler(event, context):\n    return event\n"
PYTHON_NOOP = "def handler(event, context):\n    return None\n"
PYTHON_MARKED = f'''def handler(event, context):
    with open("/proc/self/comm", "w") as name:
        name.write("{MARK}")
    return event
'''
NODEJS_ECHO = "exports.handler = async (event) => event;\n"
GO_ECHO = """package main

import (
	"encoding/json"

	"nanogrid"
)

func main() {
	nanogrid.Start(func(event json.RawMessage) (json.RawMessage, error) { return event, nil })
}
"""
CPP_ECHO = """#include <nanogrid.hpp>

int main() {
    nanogrid::start([](std::string_view event, nanogrid::context&) -> std::string { return std::string(event); });
}
"""


class Source(NamedTuple):
    """A function as its author has it."""

    runtime: str
    files: dict[str, str]
    compiled: bool = False


ECHO: Final = {
    "python3": Source("python3", {"main.py": PYTHON_ECHO}),
    "nodejs": Source("nodejs", {"index.js": NODEJS_ECHO}),
    "go": Source("go", {"main.go": GO_ECHO, "go.mod": "module bench\n\ngo 1.21\n"}, compiled=True),
    "cpp": Source("cpp", {"main.cpp": CPP_ECHO}, compiled=True),
}
"""Returns its event, in every language."""
NOOP: Final = Source("python3", {"main.py": PYTHON_NOOP})
MARKED: Final = Source("python3", {"main.py": PYTHON_MARKED})


def package(source: Source, nonce: str = "") -> bytes:
    """The zip. With a `nonce` no other package has the same content, so that no cache of code can know it.

    A compiled language gets no nonce: it would be compiled again, and what is measured is the start of a
    program that is built already.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in source.files.items():
            archive.writestr(name, text)
        if nonce and not source.compiled:
            archive.writestr("nonce.txt", nonce)
    return buffer.getvalue()


def multipart(config: dict[str, Any], code: bytes) -> tuple[bytes, str]:
    """The body of a deploy and its content type."""
    boundary = "----nanogrid-bench-part"
    parts = (
        ('name="config"', "application/json", json.dumps(config).encode()),
        ('name="code"; filename="code.zip"', "application/zip", code),
    )
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\nContent-Type: {kind}\r\n\r\n".encode()
        + data
        + b"\r\n"
        for head, kind, data in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
