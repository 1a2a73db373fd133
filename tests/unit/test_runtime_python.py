"""The Python runtime, driven as a worker drives it: a real process behind a real socket."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bootstrap_client import Start, starter, write

from nanogrid import wire

ROOT = Path(__file__).parents[2]
BOOTSTRAP = ROOT / "runtimes/python3/bootstrap.py"


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Start]:
    """See `starter`."""
    with starter(
        [sys.executable, "-I", "-S", "-B", str(BOOTSTRAP)], tmp_path, "main.py", "main.handler", "python3"
    ) as start:
        yield start


def test_says_hello_and_echoes(boot: Start) -> None:
    b = boot("def handler(event, context): return event")
    assert b.hello.meta == {"pid": b.process.pid, "runtime": "python3", "protocol": 1}
    for event in ({"n": 1, "text": "gr\u00fc\u00dfe \u2603"}, [1, 2.5, None, True], "text", 0, None):
        assert b.invoke(event).result == event
    assert b.invoke(raw=b"").result is None
    big = {"text": "x" * 5_000_000}
    assert b.invoke(big).result == big
    assert b.invoke("after").result == "after"


def test_frames_that_arrive_together_are_served_in_order(boot: Start) -> None:
    b = boot("def handler(event, context): return event")
    for n in range(50):
        b.start(n)
    assert [b.finish().result for _ in range(50)] == list(range(50))


def test_async_handlers_share_one_loop(boot: Start) -> None:
    b = boot(
        """
        import asyncio
        lock = asyncio.Lock()
        loops = set()
        async def handler(event, context):
            loops.add(asyncio.get_running_loop())
            async with lock:
                await asyncio.sleep(0)
            return len(loops)
        """
    )
    assert [b.invoke().result for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_generators_stream(boot: Start, kind: str) -> None:
    b = boot(
        f"{kind} handler(event, context):\n    for item in event['items']:\n        yield item if item != 'b' else b'b'"
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


def test_the_value_a_generator_returns_is_the_result(boot: Start) -> None:
    answer = boot("def handler(event, context):\n    yield 'working'\n    return {'done': 1}").invoke()
    assert (answer.partial, answer.result) == ([b"working"], {"done": 1})


def test_a_streamed_item_that_is_not_json(boot: Start) -> None:
    answer = boot("def handler(event, context):\n    yield 1\n    yield object()").invoke()
    assert answer.partial == [b"1\n"]
    assert answer.error["class"] == "RESULT_INVALID"
    assert "item 1 of the stream" in answer.error["message"]


def test_progress_and_emit(boot: Start) -> None:
    b = boot(
        """
        import nanogrid, threading
        from nanogrid import emit
        nanogrid.progress("dropped: no invocation runs")
        kept = []
        def handler(event, context):
            nanogrid.progress(0.4)
            context.progress({"step": "two"})
            emit("chunk")
            context.emit(b"\\x00\\xff")
            emit([1])
            for old in kept:
                old.emit("dropped: its invocation is over")
            kept.append(context)
            t = threading.Thread(target=nanogrid.progress, args=(1,)); t.start(); t.join()
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
        def handler(event, c):
            return [c.id, c.aws_request_id, c.invocation_id, c.function_name, c.function_version,
                    c.memory_limit_in_mb, c.attempt, c.deadline, c.get_remaining_time_in_millis()]
        """
    )
    *facts, remaining = b.invoke(id="i-9", attempt=3).result
    assert facts == ["i-9", "i-9", "i-9", "f", "7", 128, 3, None]
    assert remaining > 3_000_000_000
    deadline_ms = int(time.time() * 1000) + 60_000
    *_, deadline, remaining = b.invoke(deadline_ms=deadline_ms).result
    assert deadline == deadline_ms / 1000
    assert 50_000 < remaining <= 60_000


def test_an_exception_is_told_with_the_users_frames_only(boot: Start) -> None:
    b = boot(
        """\
        import json
        def parse(text):
            return json.loads(text)
        def handler(event, context):
            try:
                parse("{")
            except ValueError as cause:
                raise KeyError("caf\\u00e9 \\ud800") from cause
        """
    )
    error = b.invoke().error
    assert error["type"] == "KeyError"
    assert "caf\u00e9" in error["message"]
    assert "class" not in error
    assert error["stack"][0].startswith("main.py:8 in handler: raise KeyError(")
    assert error["stack"][1].startswith("caused by JSONDecodeError: Expecting property name")
    assert error["stack"][2:] == ['main.py:6 in handler: parse("{")', "main.py:3 in parse: return json.loads(text)"]
    assert "KeyError" in b.invoke().error["type"], "the sandbox goes on"


@pytest.mark.parametrize(
    ("body", "type_", "message"),
    [
        ("import sys; sys.exit(3)", "SystemExit", "sys.exit(3)"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("handler(event, context)", "RecursionError", "recursion"),
        ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})", "E", "cannot be read"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError", ""),
    ],
)
def test_whatever_is_raised_is_an_error_and_no_crash(boot: Start, body: str, type_: str, message: str) -> None:
    for kind in ("def", "async def"):
        b = boot(f"{kind} handler(event, context):\n    if event == 0: return 'fine'\n    {body}")
        if kind == "async def" and type_ == "RecursionError":
            continue
        error = b.invoke().error
        assert error["type"] == type_
        assert message in error["message"]
        assert len(error["stack"]) < 60
        assert b.invoke(0).result == "fine"


@pytest.mark.parametrize(
    "value",
    [
        "float('nan')",
        "[float('inf')]",
        "object()",
        "{1, 2}",
        "deep()",
        "ring()",
        "'\\ud800'",
        "10 ** 6000",
        "{(1, 2): 3}",
    ],
)
def test_a_result_that_cannot_be_encoded(boot: Start, value: str) -> None:
    b = boot(
        f"""
        def deep():
            top = []
            for _ in range(100000):
                top = [top]
            return top
        def ring():
            top = []
            top.append(top)
            return top
        def handler(event, context):
            return {value} if event else 'fine'
        """
    )
    error = b.invoke(1).error
    assert error["class"] == "RESULT_INVALID"
    assert "result is not JSON" in error["message"]
    assert b.invoke(0).result == "fine"


def test_bytes_in_and_out(boot: Start) -> None:
    b = boot("def handler(event, context): return event[::-1] if isinstance(event, bytes) else str(event)")
    answer = b.invoke(raw=b"\x00\x01\xff", type="image/png").last
    assert (answer.meta, answer.payload) == ({"type": "application/octet-stream"}, b"\xff\x01\x00")
    assert b.invoke(raw=b'{"a": 1}', type="application/cloudevents+json; charset=utf-8").result == "{'a': 1}"


@pytest.mark.parametrize("raw", [b"{", b"\xff", b"[" * 100_000])
def test_an_event_that_is_not_json(boot: Start, raw: bytes) -> None:
    b = boot("def handler(event, context): return 'fine'")
    error = b.invoke(raw=raw).error
    assert error["type"] == "EventInvalid"
    assert "the event is not JSON" in error["message"]
    assert b.invoke().result == "fine"


@pytest.mark.parametrize(
    ("files", "handler", "type_", "says"),
    [
        ({"other.py": ""}, "main.handler", "HandlerNotFound", "no module 'main' (it holds other.py): check `handler`"),
        ({"main.py": "def hanlder(e, c): pass"}, "main.handler", "HandlerNotFound", "it has hanlder"),
        ({"main.py": "handler = 3"}, "main.handler", "HandlerNotFound", "is a int, not a function"),
        ({"main.py": "def handler(event): pass"}, "main.handler", "HandlerSignature", "(event, context)"),
        ({"main.py": "import nosuch.thing"}, "main.handler", "ModuleNotFoundError", "'nosuch' to requirements.txt"),
        ({"main.py": "def handler(:\n"}, "main.handler", "SyntaxError", "main.py, line 1"),
        ({"main.py": "x = 1 / 0"}, "main.handler", "ZeroDivisionError", "while it was imported: ZeroDivisionError"),
        ({"main.py": "raise SystemExit(4)"}, "main.handler", "SystemExit", "while it was imported"),
        ({"main.py": ""}, "handler", "HandlerInvalid", "module.function"),
        ({"main.py": ""}, "..main.handler", "HandlerInvalid", "module.function"),
        ({"json.py": "def handler(e, c): pass"}, "json.handler", "HandlerInvalid", "standard module, 'json'"),
    ],
)
def test_a_handler_that_does_not_load(
    boot: Start, tmp_path: Path, files: dict[str, str], handler: str, type_: str, says: str
) -> None:
    b = boot()
    answer = b.try_load(write(tmp_path, files), handler)
    assert answer.kind == wire.LOAD_FAILED
    assert answer.meta["type"] == type_
    assert says in answer.meta["message"]
    assert b.wait_exit() == 1


def test_import_errors_show_where(boot: Start, tmp_path: Path) -> None:
    code = write(tmp_path, {"main.py": "import lib", "lib.py": "\nraise ValueError('boom')"})
    answer = boot().try_load(code, "main.handler")
    assert answer.meta["stack"] == [
        "main.py:1 in <module>: import lib",
        "lib.py:2 in <module>: raise ValueError('boom')",
    ]


@pytest.mark.parametrize("handler", ["pkg.mod.handler", "pkg/mod.handler", "./pkg/mod.handler"])
def test_forms_of_handler_names(boot: Start, tmp_path: Path, handler: str) -> None:
    files = {"pkg/mod.py": "import shared\ndef handler(e, c): return shared.word", "shared.py": "word = 'ok'"}
    b = boot()
    b.load(write(tmp_path, files), handler)
    assert b.invoke().result == "ok"


def test_user_code_sees_the_declared_environment_and_its_folder(boot: Start, tmp_path: Path) -> None:
    source = "import os\ndef handler(e, c): return [dict(os.environ), os.getcwd()]"
    env, cwd = boot(source, env={"GREETING": "hi"}).invoke().result
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


def test_the_example(boot: Start) -> None:
    import json
    import tomllib

    folder = ROOT / "examples/python-wordcount"
    config = tomllib.loads((folder / "nanogrid.toml").read_text())
    b = boot()
    b.load(folder, config["handler"])
    answer = b.invoke(json.loads((folder / "event.json").read_text()))
    assert answer.progress[-1] == 1.0
    assert answer.result["words"] == 272
    assert answer.result["top"][0]["word"] == "that"
