"""The bootstraps of go, cpp and command functions, driven over their socket as a worker does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from native_driver import script

from nanogrid import wire
from nanogrid.deploy.build import build
from nanogrid.deploy.toolchains import Toolchains
from nanogrid.model.function import FunctionConfig, check_config

EXAMPLES = Path(__file__).parents[2] / "examples"


GO = r"""
package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"nanogrid"
	"os"
	"os/exec"
	"time"
)

type Event struct {
	Do string `json:"do"`
	N  int    `json:"n"`
}

type Own struct{ Code int }

func (o *Own) Error() string { return fmt.Sprintf("own error %d", o.Code) }

func deep(n []int) int { return n[7] }

func main() {
	nanogrid.Start(func(ctx context.Context, e Event) (any, error) {
		switch e.Do {
		case "info":
			i, _ := nanogrid.FromContext(ctx)
			return map[string]any{"id": i.ID, "attempt": i.Attempt, "deadline": i.Deadline.UnixMilli(),
				"function": i.Function, "version": i.Version, "env": os.Environ()}, nil
		case "stream":
			nanogrid.Progress(ctx, map[string]int{"percent": 50})
			nanogrid.Emit(ctx, []byte("chunk\x00"))
			fmt.Println("printed")
			return "done", nil
		case "error":
			return nil, fmt.Errorf("outer: %w", &Own{7})
		case "plain":
			return nil, errors.New("plain")
		case "panic":
			return deep([]int{1}), nil
		case "nan":
			return math.NaN(), nil
		case "bytes":
			return []byte{0, 255}, nil
		case "wait":
			<-ctx.Done()
			return nil, ctx.Err()
		case "fds":
			out, err := exec.Command("/bin/ls", "-l", "/proc/self/fd").Output()
			return string(out), err
		case "sleep":
			time.Sleep(time.Hour)
		}
		return e, nil
	})
}
"""

CPP = r"""
#include <nanogrid.hpp>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <unistd.h>
extern char** environ;
namespace json = nanogrid::json;
struct own_error : std::runtime_error { using std::runtime_error::runtime_error; };
static std::string shell(const char* command) {
    std::string out;
    char part[512];
    FILE* pipe = popen(command, "r");
    while (fgets(part, sizeof part, pipe)) out += part;
    pclose(pipe);
    return out;
}
int main() {
    nanogrid::start([](std::string_view event, nanogrid::context& ctx) -> std::string {
        auto e = json::parse(event);
        std::string what = e["do"].string();
        if (what == "info") {
            std::vector<std::string> env;
            for (char** v = environ; *v; ++v) env.push_back(json::text(*v));
            return json::object({{"id", json::text(ctx.id)}, {"attempt", json::text(ctx.attempt)},
                {"deadline", json::text(ctx.deadline_ms)}, {"function", json::text(ctx.function)},
                {"version", json::text(ctx.version)}, {"env", json::array(env)}});
        }
        if (what == "stream") {
            ctx.progress("{\"percent\": 50}");
            ctx.emit(std::string_view("chunk\0", 6));
            std::printf("printed\n");
            return "\"done\"";
        }
        if (what == "error") {
            try { throw own_error("inner"); }
            catch (...) { std::throw_with_nested(std::runtime_error("outer")); }
        }
        if (what == "odd") throw 7;
        if (what == "bad") return "{\"a\": tru}";
        if (what == "empty") return "";
        if (what == "bytes") { ctx.content_type = "application/octet-stream"; return std::string("\0\xff", 2); }
        if (what == "fds") return json::text(shell("ls -l /proc/self/fd"));
        if (what == "sleep") sleep(3600);
        if (what == "text") return json::text(e["value"].string());
        if (what == "raw") return std::string(e["value"].raw());
        return std::string(event);
    });
}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a program once: by the name of an example, or `go` and `cpp` for the texts above."""
    import asyncio

    root = tmp_path_factory.mktemp("built")
    done: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name in done:
            return done[name]
        runtime, source = name.split("-")[0], EXAMPLES / name
        if name in ("go", "cpp"):
            source = root / f"{name}-source"
            source.mkdir()
            (source / ("main.go" if name == "go" else "main.cpp")).write_text(GO if name == "go" else CPP)
        out = root / name
        out.mkdir()
        handler = "wordfreq.sh" if runtime == "command" else ""
        config = check_config(FunctionConfig(name="f", runtime=runtime, handler=handler))
        asyncio.run(build(source, config, out, lambda line: None, root / "cache", Toolchains()))
        done[name] = out
        return out

    return make


COMPILED = [
    pytest.param("go", marks=pytest.mark.needs("go")),
    pytest.param("cpp", marks=pytest.mark.needs("g++")),
]


@pytest.mark.parametrize("runtime", COMPILED)
def test_a_compiled_function_serves(boot, built, runtime: str) -> None:
    driver = boot()
    assert driver.hello == {"pid": driver.process.pid, "runtime": "native", "protocol": 1}
    kind, meta, _ = driver.load(built(runtime), runtime, COLOR="blue")
    assert kind == wire.LOADED, meta
    assert meta["init_ms"] < 1000
    soon = int(time.time() * 1000) + 60_000
    info = driver.result({"do": "info"}, id="i-9", attempt=2, deadline_ms=soon)
    env = dict(pair.split("=", 1) for pair in info.pop("env"))
    assert info == {"id": "i-9", "attempt": 2, "deadline": soon, "function": "f", "version": 3}
    assert env.pop("PATH")
    assert env == {
        "COLOR": "blue", "HOME": "/tmp", "LANG": "C.UTF-8", "TMPDIR": "/tmp",
        "NANOGRID_FUNCTION": "f", "NANOGRID_VERSION": "3", "NANOGRID_MEMORY_MB": "128",
    }  # fmt: skip
    frames = driver.call({"do": "stream"})
    assert frames == [
        (wire.PROGRESS, {"progress": {"percent": 50}}, b""),
        (wire.PARTIAL, {}, b"chunk\0"),
        (wire.RESULT, {}, b'"done"'),
    ]
    assert driver.printed() == "printed\n", "output must be flushed before the result"
    assert driver.call({"do": "bytes"}) == [(wire.RESULT, {"type": "application/octet-stream"}, b"\0\xff")]
    assert driver.result({"do": "other", "n": 1}) == {"do": "other", "n": 1}


@pytest.mark.parametrize("runtime", COMPILED)
def test_the_socket_is_hidden_from_children(boot, built, runtime: str) -> None:
    driver = boot()
    driver.load(built(runtime), runtime)
    assert "socket:" not in str(driver.result({"do": "fds"}))


@pytest.mark.parametrize("runtime", [*COMPILED, "command"])
def test_the_program_ends_when_the_worker_is_gone(boot, built, tmp_path, runtime: str) -> None:
    if runtime == "command":
        code, handler = script(tmp_path, "sleep 3600"), "x.sh"
    else:
        code, handler = built(runtime), "bootstrap"
    for busy in (False, True):
        driver = boot()
        driver.load(code, runtime, handler)
        if busy:
            driver.send(b'{"do": "sleep"}')
            time.sleep(0.2)
        driver.sock.close()
        assert driver.process.wait(5) == 0


@pytest.mark.parametrize("runtime", [*COMPILED, "command"])
def test_a_large_event_comes_back_whole(boot, built, tmp_path, runtime: str) -> None:
    driver = boot()
    if runtime == "command":
        driver.load(script(tmp_path, "cat"), runtime, "x.sh")
    else:
        driver.load(built(runtime), runtime)
    text = "x" * (5 << 20)
    assert driver.result({"do": text, "n": 0}) == {"do": text, "n": 0}


@pytest.mark.needs("go")
def test_go_failures(boot, built) -> None:
    driver = boot()
    driver.load(built("go"), "go")
    error = driver.error({"do": "error"})
    assert error["message"] == "outer: own error 7"
    assert error["stack"] == ["caused by main.Own: own error 7"]
    assert driver.error({"do": "plain"})["type"] == "error"
    panic = driver.error({"do": "panic"})
    assert "index out of range [7]" in panic["message"]
    assert panic["stack"][0].startswith("main.deep (") and "main.go:" in panic["stack"][0]
    nan = driver.error({"do": "nan"})
    assert nan["class"] == "RESULT_INVALID" and "NaN" in nan["message"]
    bad = driver.error({"do": 5})
    assert bad["type"] == "EventError" and "do" in bad["message"]
    soon = int(time.time() * 1000) + 100
    kind, late, _ = driver.call({"do": "wait"}, deadline_ms=soon)[-1]
    assert kind == wire.ERROR and late["message"] == "context deadline exceeded"
    assert driver.result(b"") == {"do": "", "n": 0}


@pytest.mark.needs("g++")
def test_cpp_failures(boot, built) -> None:
    driver = boot()
    driver.load(built("cpp"), "cpp")
    error = driver.error({"do": "error"})
    assert "runtime_error" in error["type"] and error["message"] == "outer"
    assert error["stack"] == ["caused by own_error: inner"]
    assert "std::exception" in driver.error({"do": "odd"})["message"]
    bad = driver.error({"do": "bad"})
    assert bad["class"] == "RESULT_INVALID" and "unknown word at byte 6" in bad["message"]
    assert "not JSON" in driver.error(b"{nope")["message"]
    assert driver.result({"do": "empty"}) is None
    assert driver.call(b"") == [(wire.RESULT, {}, b"null")]


@pytest.mark.needs("g++")
def test_the_json_reader_of_cpp(boot, built) -> None:
    driver = boot()
    driver.load(built("cpp"), "cpp")
    texts = ("", 'q"\\/\b\f\n\r\t', "é €", "\U0001f600 \x01\x7f", "\0")
    for text in texts:
        for ascii_only in (True, False):
            event = json.dumps({"do": "text", "value": text}, ensure_ascii=ascii_only).encode()
            assert driver.result(event) == text
    for value in (0, -1.5e-7, 10**15, True, None, [], {}, [1, [2, {"a": [3]}]], {"b": "c\\"}):
        assert driver.result({"do": "raw", "value": value}) == value
    for bad in (
        b"[1,]",
        b'{"a":}',
        b"01",
        b"1.",
        b"[",
        b'"',
        b'"\\x"',
        b"nul",
        b"1 2",
        b"\xff",
        b"[" * 10000,
    ):
        assert "not JSON" in driver.error(bad)["message"], bad


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param("go-primes", lambda r: r["count"] == 1270607, marks=pytest.mark.needs("go")),
        pytest.param("cpp-mandelbrot", lambda r: 1.3 < r["area"] < 1.8, marks=pytest.mark.needs("g++")),
        pytest.param("cpp-matrix", lambda r: r["residual"] < 1e-9, marks=pytest.mark.needs("g++", "cmake")),
        ("command-wordfreq", lambda r: r["the"] == 6),
    ],
)
def test_the_examples_work(boot, built, name: str, check: Callable[[dict], bool]) -> None:
    driver = boot()
    handler = "wordfreq.sh" if name.startswith("command") else "bootstrap"
    kind, meta, _ = driver.load(built(name), name.split("-")[0], handler)
    assert kind == wire.LOADED, meta
    assert check(driver.result((EXAMPLES / name / "event.json").read_bytes()))
