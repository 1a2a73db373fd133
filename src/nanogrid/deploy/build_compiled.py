"""The build of go and cpp functions: both end in one program, `bootstrap`, beside the data files."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Final

from nanogrid.deploy.build_process import BuildShell
from nanogrid.deploy.toolchains import Toolchains, runtimes_dir
from nanogrid.errors import BuildFailed
from nanogrid.model.function import FunctionConfig

PROGRAM: Final = "bootstrap"
GO_SOURCES: Final = ("*.go", "go.mod", "go.sum", "go.work", "go.work.sum", "vendor")
CPP_ENDINGS: Final = (".cpp", ".cc", ".cxx")
CPP_SOURCES: Final = ("*.cpp", "*.cc", "*.cxx", "*.hpp", "*.hh", "*.h", "*.o", "CMakeLists.txt", "build")
COMPILED_AT_ONCE: Final = 4


def _copy(source: Path, to: Path, *left_out: str) -> None:
    ignore = shutil.ignore_patterns(".git", *left_out)
    shutil.copytree(source, to, symlinks=True, dirs_exist_ok=True, ignore=ignore)


async def _copy_data(source: Path, out: Path, sources: tuple[str, ...]) -> None:
    """What the program may read while it works: all that is not its source text."""
    await asyncio.to_thread(_copy, source, out, "nanogrid.toml", PROGRAM, *sources)


async def _ready_made(source: Path, out: Path) -> bool:
    """Takes a `bootstrap` that the user compiled elsewhere."""
    program = source / PROGRAM
    if not program.is_file():
        return False
    with program.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            raise BuildFailed(f"{PROGRAM} is not a Linux executable: deploy the source, or compile it for Linux")
    await asyncio.to_thread(_copy, source, out)
    (out / PROGRAM).chmod(0o755)
    return True


async def make_go(shell: BuildShell, source: Path, config: FunctionConfig, out: Path, tools: Toolchains) -> None:
    """`go build` of the package in the root, or in the folder that the handler names."""
    package = _go_package(source, config.handler)
    if package is None:
        if await _ready_made(source, out):
            return
        raise BuildFailed(
            "a go function needs a package main: put .go files at the top of the code, "
            "or set handler to the folder that has them, such as 'cmd/api'"
        )
    go = str(tools.need("go"))
    code, module = shell.work / "src" / "function", shell.work / "src" / "nanogrid"
    await asyncio.to_thread(_copy, source, code)
    await asyncio.to_thread(_copy, runtimes_dir() / "go", module)
    if not (code / "go.mod").is_file():
        (code / "go.mod").write_text("module function\n\ngo 1.21\n")
    edit = [go, "mod", "edit", "-require=nanogrid@v0.0.0", "-replace=nanogrid=../nanogrid"]
    env = {"CGO_ENABLED": "0", "GOWORK": "off", "GOTOOLCHAIN": shell.env.get("GOTOOLCHAIN", "local")}
    env["GOFLAGS"] = f"{shell.env.get('GOFLAGS', '')} -modcacherw".strip()
    await shell.run(edit, code, "go.mod cannot be read", env)
    vendored = _vendor(code, module)
    # Without go.sum nothing is pinned yet; then go may look up what the code imports.
    mode = "vendor" if vendored else "readonly" if (code / "go.sum").is_file() else "mod"
    argv = [go, "build", f"-mod={mode}", "-trimpath", "-buildvcs=false", "-ldflags=-s -w"]
    argv += ["-o", str(out / PROGRAM), package]
    shell.say("build: compiling with go")
    await shell.run(argv, code, "the go code does not compile", env)
    if not _is_program(out / PROGRAM):
        (out / PROGRAM).unlink(missing_ok=True)
        raise BuildFailed(f"{package} is not a program: it must say 'package main' and have a func main()")
    await _copy_data(source, out, GO_SOURCES)


def _go_package(source: Path, handler: str) -> str | None:
    folder = source / handler
    if folder.is_dir() and folder.resolve().is_relative_to(source.resolve()) and any(folder.glob("*.go")):
        return f"./{Path(handler)}"
    return "." if any(source.glob("*.go")) else None


def _vendor(code: Path, module: Path) -> bool:
    """Adds the nanogrid module to a vendor folder, so that it stays consistent with go.mod."""
    listed = code / "vendor" / "modules.txt"
    if not listed.is_file():
        return False
    shutil.rmtree(code / "vendor" / "nanogrid", ignore_errors=True)
    _copy(module, code / "vendor" / "nanogrid", "go.mod")
    entry = "# nanogrid v0.0.0 => ../nanogrid\n## explicit; go 1.18\nnanogrid\n# nanogrid => ../nanogrid\n"
    listed.write_text(listed.read_text() + entry)
    return True


def _is_program(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


def executes_cmake(source: Path) -> bool:
    """A CMakeLists.txt is a program; plain sources are only read by the compiler."""
    return (source / "CMakeLists.txt").is_file()


async def make_cpp(shell: BuildShell, source: Path, config: FunctionConfig, out: Path, tools: Toolchains) -> None:
    """CMake where there is a CMakeLists.txt, else every source file compiled and linked into one program."""
    files = [p for p in sorted(source.rglob("*")) if p.suffix in CPP_ENDINGS and p.is_file()]
    if not files and not executes_cmake(source):
        if await _ready_made(source, out):
            return
        raise BuildFailed(
            "a cpp function needs source files (.cpp, .cc or .cxx) or a CMakeLists.txt, and there are none"
        )
    compiler = tools.compiler()
    code, include = shell.work / "src", shell.work / "include"
    await asyncio.to_thread(_copy, source, code)
    await asyncio.to_thread(_copy, runtimes_dir() / "cpp", include)
    cmake = tools.find("cmake") if executes_cmake(source) else None
    if cmake is not None:
        await _cmake(shell, str(cmake), compiler, code, include, out)
    else:
        if executes_cmake(source):
            shell.say("build: cmake is not installed, so all source files are compiled into one program")
        names = [str(path.relative_to(source)) for path in files]
        await _compile(shell, compiler, code, names, include, out)
    await _copy_data(source, out, CPP_SOURCES)


async def _compile(
    shell: BuildShell, compiler: list[str], code: Path, names: list[str], include: Path, out: Path
) -> None:
    """Each file on its own, some at a time; then linked statically, or dynamically if need be."""
    zig = Path(compiler[0]).name == "zig"
    shell.say("build: compiling with zig (slow the first time)" if zig else "build: compiling with g++")
    options = ["-std=c++20", "-O2", "-pthread", "-I", str(include), "-I", "."]
    objects = [shell.work / f"{at}.o" for at in range(len(names))]
    for at in range(0, len(names), COMPILED_AT_ONCE):
        commands = [
            [*compiler, *options, "-c", name, "-o", str(made)]
            for name, made in list(zip(names, objects, strict=True))[at : at + COMPILED_AT_ONCE]
        ]
        statuses = await _together(shell, commands, code)
        if any(statuses):
            broken = ", ".join(name for name, s in zip(names[at:], statuses, strict=False) if s)
            raise shell.failed(f"{broken} does not compile")
    link = [*compiler, *map(str, objects), "-O2", "-pthread", "-s", "-o", str(out / PROGRAM)]
    if await shell.status([*link, "-static"], code, quiet=True) == 0:
        return
    await shell.run(link, code, "the program does not link: it needs exactly one main()")
    shell.say("build: linked dynamically, because this machine cannot link it statically")


async def _together(shell: BuildShell, commands: list[list[str]], cwd: Path) -> list[int]:
    """The statuses of all; a cancel ends every one of them."""
    return await asyncio.gather(*(shell.status(argv, cwd) for argv in commands))


async def _cmake(shell: BuildShell, cmake: str, compiler: list[str], code: Path, include: Path, out: Path) -> None:
    """Configures and builds; takes the target called `bootstrap`, or the only program that comes out."""
    made, programs = shell.work / "cmake", shell.work / "programs"
    env = {"CXX": " ".join(compiler), "CPLUS_INCLUDE_PATH": str(include)}
    if Path(compiler[0]).name == "zig":
        env["CC"] = env["CXX"].replace(" c++ ", " cc ", 1)
    configure = [cmake, "-S", str(code), "-B", str(made), "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DCMAKE_RUNTIME_OUTPUT_DIRECTORY={programs}", "-DCMAKE_CXX_STANDARD=20"]
    for flags in ("-static -pthread", "-static-libstdc++ -static-libgcc -pthread"):
        shell.say("build: compiling with cmake")
        argv = [*configure, f"-DCMAKE_EXE_LINKER_FLAGS={flags}"]
        await shell.run(argv, code, "CMakeLists.txt could not be configured", env)
        status = await shell.status([cmake, "--build", str(made), "--parallel", "2"], code, env)
        if status == 0:
            break
        if not any("ld returned" in line or "cannot find -l" in line for line in shell.tail):
            raise shell.failed("the C++ code does not compile")
        shell.say("build: static linking failed, trying with shared libraries")
    else:
        raise shell.failed("the program does not link")
    found = [path for path in programs.rglob("*") if _is_program(path) and os.access(path, os.X_OK)]
    chosen = next((path for path in found if path.name == PROGRAM), found[0] if len(found) == 1 else None)
    if chosen is None:
        names = ", ".join(sorted(path.name for path in found)) or "none"
        raise BuildFailed(f"CMakeLists.txt must have one program, or one called {PROGRAM!r}; it made: {names}")
    await asyncio.to_thread(shutil.copy2, chosen, out / PROGRAM)
