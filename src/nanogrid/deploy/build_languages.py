"""What the build step does for each runtime; `RECIPES` is the table, one row a runtime.

A recipe gets a `BuildShell` (a temporary folder, a minimal environment, the log), the source and the
folder to fill. It raises BuildFailed with a sentence that names the file and what is expected of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from nanogrid.deploy.build_compiled import executes_cmake, make_cpp, make_go
from nanogrid.deploy.build_process import BuildShell
from nanogrid.deploy.toolchains import Toolchains
from nanogrid.errors import BuildFailed
from nanogrid.model.function import FunctionConfig

Make = Callable[[BuildShell, Path, FunctionConfig, Path, Toolchains], Awaitable[None]]


class Recipe(NamedTuple):
    """How one runtime is built."""

    make: Make
    tools: tuple[str, ...]
    """Programs whose version is part of the result."""
    caches: dict[str, str]
    """Environment variable -> folder of a cache that builds share."""
    executes_source: Callable[[Path], bool]
    """Whether building this source starts code that the user (or a dependency) wrote."""
    runtime_files: str | None = None
    """A folder under `runtimes/` that is compiled into the result."""


def copy_source(source: Path, out: Path) -> None:
    """The source as it is, without what belongs to version control or to another machine."""
    ignore = shutil.ignore_patterns(".git", "__pycache__", "*.pyc", ".venv")
    shutil.copytree(source, out, symlinks=True, dirs_exist_ok=True, ignore=ignore)


def _listing(source: Path) -> str:
    names = sorted(path.name for path in source.iterdir())[:10]
    return f"the code has {', '.join(names)}" if names else "the code is empty"


def _handler_file(source: Path, handler: str, endings: tuple[str, ...]) -> Path:
    """The file of a `module.function` handler, relative to the source."""
    module, _, function = handler.rpartition(".")
    tried = [module + ending for ending in endings]
    if endings[0] == ".py":
        tried = [module.replace(".", "/") + ending for ending in endings]
    for name in tried:
        if (source / name).is_file() and (source / name).resolve().is_relative_to(source.resolve()):
            return Path(name)
    raise BuildFailed(
        f"handler {handler!r} needs the file {' or '.join(tried)} with {function!r} in it, "
        f"and there is none ({_listing(source)})"
    )


# Prints the error of a file that does not compile as `file:line: message`, with the line itself.
CHECK_PYTHON: Final = """
import sys
path, shown = sys.argv[1:]
try:
    compile(open(path, "rb").read(), shown, "exec", dont_inherit=True)
except SyntaxError as e:
    print(f"{shown}:{e.lineno}: {type(e).__name__}: {e.msg}")
    if e.text:
        print("    " + e.text.strip())
    sys.exit(1)
except (ValueError, RecursionError, MemoryError) as e:
    print(f"{shown}:1: {type(e).__name__}: {e}")
    sys.exit(1)
"""


async def make_python(shell: BuildShell, source: Path, config: FunctionConfig, out: Path, tools: Toolchains) -> None:
    """Copies, checks the handler's syntax and installs requirements.txt next to the code."""
    handler = _handler_file(source, config.handler, (".py", "/__init__.py"))
    await asyncio.to_thread(copy_source, source, out)
    python = str(tools.need("python"))
    check = [python, "-I", "-S", "-c", CHECK_PYTHON, str(out / handler), str(handler)]
    if await shell.status(check, out):
        cause = next((line for line in shell.tail if line.startswith(f"{handler}:")), str(handler))
        raise shell.failed(cause)
    requirements = out / "requirements.txt"
    if requirements.is_file() and _requirements(requirements):
        shell.say("build: installing requirements.txt")
        argv = [*_installer(tools), "--target", str(out), "-r", str(requirements)]
        # A source distribution starts its author's code at install; a line `--no-binary NAME` (or
        # `--only-binary`) in requirements.txt takes over from this default.
        if not _chooses_binaries(requirements):
            argv += ["--only-binary", ":all:"]
        await shell.run(argv, out, "the dependencies in requirements.txt could not be installed")
        if not (source / "bin").exists():  # Entry points for shells, with this folder's path inside.
            shutil.rmtree(out / "bin", ignore_errors=True)
        (out / ".lock").unlink(missing_ok=True)


def _requirements(file: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in file.read_text("utf-8", "replace").splitlines())
    return [line for line in lines if line]


def _chooses_binaries(file: Path) -> bool:
    return any(line.startswith(("--no-binary", "--only-binary")) for line in _requirements(file))


# A requirement that names a package of the registry: no option, path, address or archive.
REGISTRY_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?<!\.gz)(?<!\.zip)\s*(\[[\w,. -]*\])?\s*([<>=!~;][^/@]*)?")


def _executes_python(source: Path) -> bool:
    """Only wheels of the registry are sure to install without starting anyone's code."""
    file = source / "requirements.txt"
    return file.is_file() and not all(REGISTRY_NAME.fullmatch(line) for line in _requirements(file))


def _executes_node(source: Path) -> bool:
    """An .npmrc may name programs that npm starts; install scripts are off."""
    return (source / ".npmrc").exists()


def _installer(tools: Toolchains) -> list[str]:
    python, uv = str(tools.need("python")), tools.find("uv")
    if uv is not None:
        return [str(uv), "pip", "install", "--python", python, "--link-mode", "copy", "--no-progress"]
    return [python, "-m", "pip", "install", "--no-input", "--progress-bar", "off"]


async def make_node(shell: BuildShell, source: Path, config: FunctionConfig, out: Path, tools: Toolchains) -> None:
    """Copies, checks the handler's syntax and installs what package.json names, without install scripts."""
    handler = _handler_file(source, config.handler, (".js", ".mjs", ".cjs"))
    await asyncio.to_thread(copy_source, source, out)
    manifest = out / "package.json"
    installs = manifest.is_file() and _dependencies(manifest)
    node = str(tools.need("node"))
    await shell.run([node, "--check", str(handler)], out, f"{handler} has a syntax error")
    if not installs:
        return
    locked = any((out / name).is_file() for name in ("package-lock.json", "npm-shrinkwrap.json"))
    shell.say(f"build: installing package.json ({'from its lock file' if locked else 'without a lock file'})")
    argv = [*tools.npm(), "ci" if locked else "install", "--ignore-scripts", "--omit=dev"]
    argv += ["--no-audit", "--no-fund", "--no-update-notifier"]
    await shell.run(argv, out, "the dependencies in package.json could not be installed")


def _dependencies(manifest: Path) -> bool:
    try:
        described = json.loads(manifest.read_bytes())
    except ValueError as error:
        raise BuildFailed(f"package.json is not valid JSON: {error}") from None
    if not isinstance(described, dict):
        raise BuildFailed("package.json must be a JSON object")
    return any(described.get(group) for group in ("dependencies", "optionalDependencies", "workspaces"))


async def make_command(shell: BuildShell, source: Path, config: FunctionConfig, out: Path, tools: Toolchains) -> None:
    """Copies; the handler must be something that Linux can execute."""
    path = source / config.handler
    if not path.is_file() or not path.resolve().is_relative_to(source.resolve()):
        raise BuildFailed(
            f"handler {config.handler!r} must be an executable file in the code, and there is none ({_listing(source)})"
        )
    with path.open("rb") as file:
        head = file.read(256).split(b"\n")[0]
    if not head.startswith((b"#!", b"\x7fELF")):
        raise BuildFailed(
            f"{config.handler} is neither a Linux executable nor a script: begin it with a line such as #!/bin/sh"
        )
    if re.match(rb"#!.*\r$", head):
        raise BuildFailed(
            f"{config.handler} has Windows line ends (CRLF), with which its #! line does not work: save it with LF"
        )
    await asyncio.to_thread(copy_source, source, out)
    (out / config.handler).chmod(0o755)


def _never(source: Path) -> bool:
    return False


RECIPES: Final[dict[str, Recipe]] = {
    "python3": Recipe(make_python, ("uv",), {"UV_CACHE_DIR": "uv", "PIP_CACHE_DIR": "pip"}, _executes_python),
    "nodejs": Recipe(make_node, ("node", "npm"), {"npm_config_cache": "npm"}, _executes_node),
    "go": Recipe(make_go, ("go",), {"GOCACHE": "build", "GOMODCACHE": "mod", "GOPATH": "path"}, _never, "go"),
    "cpp": Recipe(
        make_cpp,
        ("g++", "zig", "cmake"),
        {"ZIG_GLOBAL_CACHE_DIR": "zig", "ZIG_LOCAL_CACHE_DIR": "zig-local"},
        executes_cmake,
        "cpp",
    ),
    "command": Recipe(make_command, (), {}, _never),
}
