"""The Node.js runtime, driven as a worker drives it: a real process behind a real socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from bootstrap_client import Closed, Start, starter, write

from nanogrid import wire

ROOT = Path(__file__).parents[2]
BOOTSTRAP = ROOT / "runtimes/nodejs/bootstrap.js"
pytestmark = pytest.mark.needs("node")


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Start]:
    """See `starter`."""
    argv = [shutil.which("node") or "node", "--max-old-space-size=128", "--max-semi-space-size=2", str(BOOTSTRAP)]
    with starter(argv, tmp_path, "index.js", "index.handler", "nodejs") as start:
        yield start


def test_says_hello_and_echoes(boot: Start) -> None:
    b = boot("exports.handler = async (event) => event")
    assert b.hello.meta == {"pid": b.process.pid, "runtime": "nodejs", "protocol": 1}
    for event in ({"n": 1, "text": "gr\u00fc\u00dfe \u2603"}, [1, 2.5, None, True], "text", 0, None):
        assert b.invoke(event).result == event
    assert b.invoke(raw=b"").result is None
    big = {"text": "x" * 5_000_000}
    assert b.invoke(big).result == big
    assert b.invoke("after").result == "after"


@pytest.mark.parametrize(
    "handler",
    [
        "(event) => event + 1",
        "(event, context, callback) => { setTimeout(() => callback(null, event + 1), 5) }",
        "(event, context, callback) => callback(null, event + 1)",
        "async (event, context, callback) => event + 1",
        "(event) => new Promise((resolve) => setImmediate(resolve, event + 1))",
    ],
)
def test_shapes_of_handlers(boot: Start, handler: str) -> None:
    b = boot(f"exports.handler = {handler}")
    assert [b.invoke(n).result for n in (1, 2)] == [2, 3]


def test_an_error_given_to_the_callback(boot: Start) -> None:
    error = boot("exports.handler = (e, c, callback) => callback(new RangeError('no'))").invoke().error
    assert (error["type"], error["message"]) == ("RangeError", "no")
    assert error["stack"][0].startswith("exports.handler (index.js:1:")


@pytest.mark.parametrize("kind", ["function*", "async function*"])
def test_generators_stream(boot: Start, kind: str) -> None:
    b = boot(
        f"exports.handler = {kind} (event) {{ for (const x of event.items) yield x === 'b' ? Buffer.from(x) : x }}"
    )
    text = b.invoke({"items": ["he", "llo"]})
    assert text.partial == [b"he", b"llo"]
    assert text.result == "hello"
    values = b.invoke({"items": [1, {"a": 2}]})
    assert values.partial == [b"1\n", b'{"a":2}\n']
    assert values.result == [1, {"a": 2}]
    mixed = b.invoke({"items": ["a", "b"]}).last
    assert (mixed.meta, mixed.payload) == ({"type": "application/octet-stream"}, b"ab")
    assert b.invoke({"items": []}).result == []
    assert b.invoke({"items": ["x" * 1000] * 3000}).result == "x" * 3_000_000


def test_the_value_a_generator_returns_is_the_result(boot: Start) -> None:
    answer = boot("exports.handler = async function* () { yield 'working'; return { done: 1 } }").invoke()
    assert (answer.partial, answer.result) == ([b"working"], {"done": 1})


def test_progress_and_emit(boot: Start) -> None:
    b = boot(
        """
        const module_ = require('nanogrid');
        nanogrid.progress('dropped: no invocation runs');
        const kept = [];
        exports.handler = async (event, context) => {
          module_.progress(0.4);
          nanogrid.progress({ step: 'two' });
          nanogrid.emit('chunk');
          context.emit(Buffer.from([0, 255]));
          context.progress(1);
          context.emit([1]);
          for (const old of kept) old.emit('dropped: its invocation is over');
          kept.push(context);
        };
        """
    )
    for _ in range(2):
        answer = b.invoke()
        assert answer.progress == [0.4, {"step": "two"}, 1]
        assert answer.partial == [b"chunk", b"\x00\xff", b"[1]\n"]
        assert answer.result is None


def test_context(boot: Start) -> None:
    b = boot(
        """
        exports.handler = async (event, c) => [c.id, c.awsRequestId, c.functionName, c.functionVersion,
          c.memoryLimitInMB, c.attempt, c.deadline, c.getRemainingTimeInMillis()];
        """
    )
    *facts, remaining = b.invoke(id="i-9", attempt=3).result
    assert facts == ["i-9", "i-9", "f", "7", 128, 3, None]
    assert remaining > 3_000_000_000
    deadline_ms = int(time.time() * 1000) + 60_000
    *_, deadline, remaining = b.invoke(deadline_ms=deadline_ms).result
    assert deadline == deadline_ms
    assert 50_000 < remaining <= 60_000


def test_an_exception_is_told_with_the_users_frames_only(boot: Start) -> None:
    b = boot(
        """\
        class Broken extends Error {}
        const parse = (text) => JSON.parse(text);
        exports.handler = async () => {
          try { parse('{'); } catch (cause) { throw new Broken('caf\\u00e9', { cause }); }
        };
        """
    )
    error = b.invoke().error
    assert (error["type"], error["message"]) == ("Broken", "caf\u00e9")
    assert error["stack"][0].startswith("exports.handler (index.js:4:")
    assert error["stack"][1].startswith("caused by SyntaxError: ")
    assert error["stack"][2].startswith("parse (index.js:2:")
    assert not any("bootstrap.js" in line or "node:" in line for line in error["stack"])
    assert b.invoke().error["type"] == "Broken", "the sandbox goes on"


@pytest.mark.parametrize(
    ("thrown", "type_", "message"),
    [
        ("'text'", "Error", "text"),
        ("null", "Error", "null was thrown"),
        ("{ a: 1 }", "Error", '{"a":1} was thrown'),
        ("(() => { const f = () => f(); f() })()", "RangeError", "call stack"),
        ("{ get message() { throw 1 } }", "Error", "cannot be read"),
    ],
)
def test_whatever_is_thrown_is_an_error(boot: Start, thrown: str, type_: str, message: str) -> None:
    b = boot(f"exports.handler = async (event) => {{ if (event) return 'fine'; throw {thrown}; }}")
    error = b.invoke().error
    assert error["type"] == type_
    assert message in error["message"]
    assert b.invoke(1).result == "fine"


@pytest.mark.parametrize(
    "value",
    [
        "10n",
        "ring()",
        "() => 1",
        "Symbol('s')",
        "{ toJSON() { throw new Error('no') } }",
        "deep()",
        "[1n][Symbol.iterator]()",
    ],
)
def test_a_result_that_cannot_be_encoded(boot: Start, value: str) -> None:
    b = boot(
        f"""
        const ring = () => {{ const top = []; top.push(top); return top; }};
        const deep = () => {{ let top = []; for (let i = 0; i < 100000; i++) top = [top]; return top; }};
        exports.handler = async (event) => event ? {value} : 'fine';
        """
    )
    error = b.invoke(1).error
    assert error["class"] == "RESULT_INVALID"
    assert "is not JSON" in error["message"]
    assert b.invoke(0).result == "fine"


def test_bytes_in_and_out(boot: Start) -> None:
    b = boot("exports.handler = (event) => Buffer.isBuffer(event) ? new Uint8Array(event).reverse() : typeof event")
    answer = b.invoke(raw=b"\x00\x01\xff", type="image/png").last
    assert (answer.meta, answer.payload) == ({"type": "application/octet-stream"}, b"\xff\x01\x00")
    assert b.invoke(raw=b'{"a": 1}', type="application/cloudevents+json; charset=utf-8").result == "object"
    error = b.invoke(raw=b"{").error
    assert error["type"] == "EventInvalid"
    assert "the event is not JSON" in error["message"]


@pytest.mark.parametrize(
    ("files", "handler"),
    [
        ({"index.mjs": "export const handler = async () => nanogrid.progress(1) ?? 'ok'"}, "index.handler"),
        ({"index.js": "export const handler = () => 'ok'", "package.json": '{"type": "module"}'}, "index.handler"),
        ({"index.mjs": "await 1; export default { handler: () => 'ok' }"}, "index.handler"),
        ({"app.cjs": "exports.main = () => 'ok'"}, "app.main"),
        (
            {"src/app/mod.js": "exports.h = () => require('../../lib')", "lib.js": "module.exports = 'ok'"},
            "src/app/mod.h",
        ),
        ({"src/mod.js": "exports.h = () => 'ok'"}, "src.mod.h"),
        ({"lib/index.js": "exports.h = () => 'ok'"}, "./lib.h"),
        (
            {"index.js": "exports.h = () => require('dep').word", "node_modules/dep/index.js": "exports.word = 'ok'"},
            "index.h",
        ),
    ],
)
def test_modules_and_forms_of_handler_names(boot: Start, tmp_path: Path, files: dict[str, str], handler: str) -> None:
    b = boot()
    b.load(write(tmp_path, files), handler, "nodejs")
    assert b.invoke().result == "ok"


@pytest.mark.parametrize(
    ("files", "handler", "type_", "says"),
    [
        ({"other.js": ""}, "index.handler", "HandlerNotFound", "no index.js, .mjs or .cjs (it holds other.js): check"),
        ({"index.js": "exports.hanlder = () => 1"}, "index.handler", "HandlerNotFound", "it exports hanlder"),
        ({"index.js": "exports.handler = 3"}, "index.handler", "HandlerNotFound", "is a number, not a function"),
        ({"index.js": "require('nosuch')"}, "index.handler", "ModuleNotFound", "add 'nosuch' to the dependencies"),
        ({"index.mjs": "import 'nosuch'"}, "index.handler", "ModuleNotFound", "add 'nosuch' to the dependencies"),
        ({"index.js": "require('./nosuch')"}, "index.handler", "ModuleNotFound", "check the path"),
        ({"index.js": "exports.handler = ("}, "index.handler", "SyntaxError", "syntax error in index.js:1"),
        (
            {"index.js": "throw new TypeError('boom')"},
            "index.handler",
            "TypeError",
            "while it was loaded: TypeError: boom",
        ),
        (
            {"index.mjs": "throw new TypeError('boom')"},
            "index.handler",
            "TypeError",
            "while it was loaded: TypeError: boom",
        ),
        ({"index.mjs": "await new Promise(() => {})"}, "index.handler", "NeverFinished", "did not finish loading"),
        ({"index.js": ""}, "handler", "HandlerInvalid", "file.function"),
        ({"index.js": ""}, "../index.handler", "HandlerInvalid", "file.function"),
    ],
)
def test_a_handler_that_does_not_load(
    boot: Start, tmp_path: Path, files: dict[str, str], handler: str, type_: str, says: str
) -> None:
    b = boot()
    answer = b.try_load(write(tmp_path, files), handler, "nodejs")
    assert answer.kind == wire.LOAD_FAILED
    assert answer.meta["type"] == type_
    assert says in answer.meta["message"]
    assert b.wait_exit() == 1


@pytest.mark.parametrize(
    "handler",
    [
        "() => new Promise(() => {})",
        "(event, context, callback) => {}",
        "async function* () { yield 1; await new Promise(() => {}) }",
    ],
)
def test_a_handler_that_can_never_finish_is_an_error(boot: Start, handler: str) -> None:
    b = boot(f"exports.handler = {handler}")
    for _ in range(2):
        error = b.invoke().error
        assert error["type"] == "NeverFinished"
        assert "never settled" in error["message"]


@pytest.mark.parametrize(
    "how",
    [
        "setTimeout(() => { throw new RangeError('stray') }, 5); return new Promise((r) => setTimeout(r, 60000))",
        "Promise.reject(new RangeError('stray')); return new Promise((r) => setTimeout(r, 60000))",
    ],
)
def test_what_nobody_catches_ends_the_invocation_and_the_process(boot: Start, how: str) -> None:
    b = boot(f"exports.handler = (event) => {{ {how} }}")
    error = b.invoke().error
    assert (error["type"], error["message"]) == ("RangeError", "stray")
    assert error["stack"][0].startswith(("Timeout._onTimeout (index.js:1:", "exports.handler (index.js:1:"))
    assert b.wait_exit() == 1
    assert "Uncaught RangeError: stray" in b.log()


def test_process_exit_just_exits(boot: Start) -> None:
    b = boot("exports.handler = () => process.exit(9)")
    with pytest.raises(Closed, match="exit status 9"):
        b.invoke()


def test_user_code_sees_the_declared_environment_and_its_folder(boot: Start, tmp_path: Path) -> None:
    env, cwd = boot("exports.handler = () => [process.env, process.cwd()]", env={"GREETING": "hi"}).invoke().result
    assert env == {
        "GREETING": "hi",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PATH": os.environ["PATH"],
        "NANOGRID_FUNCTION": "f",
        "NANOGRID_VERSION": "7",
        "NANOGRID_MEMORY_MB": "128",
    }
    assert cwd == str(tmp_path / "code")


def test_what_is_printed_forges_nothing_and_children_do_not_get_the_socket(boot: Start) -> None:
    b = boot(
        """
        const { execFileSync } = require('node:child_process');
        exports.handler = async () => {
          process.stdout.write(Buffer.from([0, 0, 0, 12, 19, 0, 0, 0, 0, 0, 0, 0, 2, 123, 125, 49]));
          console.log('printed');
          return execFileSync('/bin/sh', ['-c', 'ls -l /proc/self/fd'], { stdio: ['ignore'] }).toString();
        };
        """
    )
    listing = b.invoke().result
    assert "socket" not in "".join(
        line for line in listing.splitlines() if not any(f" {fd} -> " in line for fd in "012")
    )
    assert "printed" in b.log()


def test_the_end_of_the_connection_ends_the_process(boot: Start) -> None:
    b = boot("exports.handler = () => { console.log('begun'); return new Promise((r) => setTimeout(r, 60000)) }")
    b.start()
    b.wait_log("begun")
    b.sock.close()
    assert b.wait_exit(5) == 0


def test_sigterm_kills_by_default_and_can_be_handled(boot: Start) -> None:
    waiting = "console.log('begun'); return new Promise((resolve) => { done = resolve; setTimeout(resolve, 60000) })"
    b = boot(f"let done; exports.handler = () => {{ {waiting} }}")
    b.start()
    b.wait_log("begun")
    b.process.send_signal(signal.SIGTERM)
    assert b.wait_exit(5) == -signal.SIGTERM
    b = boot(f"let done; process.on('SIGTERM', () => done('saved')); exports.handler = () => {{ {waiting} }}")
    b.start()
    b.wait_log("begun")
    b.process.send_signal(signal.SIGTERM)
    assert b.finish().result == "saved"


def test_the_example(boot: Start) -> None:
    folder = ROOT / "examples/node-csv"
    config = tomllib.loads((folder / "nanogrid.toml").read_text())
    b = boot()
    b.load(folder, config["handler"], config["runtime"])
    answer = b.invoke(json.loads((folder / "event.json").read_text()))
    assert answer.progress[-1] == 1
    rows = [json.loads(line) for line in answer.partial]
    assert len(rows) == answer.result["rows"] == 8
    assert rows[2]["note"] == 'Home, sweet "home"'
    assert answer.result["groups"] == {"terrestrial": 4, "gas giant": 2, "ice giant": 2}
    assert answer.result["columns"]["moons"] == {"type": "number", "empty": 0, "min": 0, "max": 146, "mean": 36}
