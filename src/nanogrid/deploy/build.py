"""The build step of a deploy: turns an unpacked source folder into the code folder that a sandbox mounts.

    source ── key over content, tools and recipe ── cached? link it ── else build in a temporary folder

What each language does is in `build_languages.py`; the checks of what came out are those of the probe
sandbox, later in the deploy. A build that fails leaves nothing behind, in the cache or in `out`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nanogrid.deploy.build_languages import RECIPES, Recipe
from nanogrid.deploy.build_process import BuildShell, Wrap
from nanogrid.deploy.toolchains import Toolchains, passed_environment, runtimes_dir
from nanogrid.errors import BuildFailed
from nanogrid.model.function import FunctionConfig

RECIPE_VERSION: Final = 1
"""Raise it when a recipe changes what it makes of the same source."""
KEPT_BUILDS: Final = 64
TIMEOUT_S: Final = 1800.0


async def build(
    source: Path,
    config: FunctionConfig,
    out: Path,
    log: Callable[[str], None],
    cache: Path,
    toolchains: Toolchains,
    wrap: Wrap | None = None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Builds `source` into `out`.

    Args:
        source: what the user uploaded, unpacked; it is only read.
        config: checked (`check_config`), so the runtime is canonical and the handler set.
        out: an empty folder. Its files may be hard links into the cache: replace them, never edit them.
        log: gets the output of the build, line by line, as it comes.
        cache: a folder that builds share; safe for several processes.
        toolchains: where compilers are found.
        wrap: puts a command line into the build sandbox, given the folders that it may write.
        timeout_s: how long the whole build may take.

    Raises:
        BuildFailed: the detail names the file and the cause, `extra["log"]` holds the end of the output.
    """
    recipe = RECIPES[config.runtime]
    cache = cache.absolute()
    started = time.monotonic()
    key = await asyncio.to_thread(content_key, source, config, recipe, toolchains)
    kept = cache / "out" / key
    if await asyncio.to_thread(_reuse, kept, out):
        log("build: cached")
        return
    (cache / "work").mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="build-", dir=cache / "work"))
    try:
        shell = _shell(work, config.runtime, recipe, source, cache, toolchains, log, wrap)
        made = work / "out"
        made.mkdir()
        try:
            async with asyncio.timeout(timeout_s):
                await recipe.make(shell, source, config, made, toolchains)
        except TimeoutError:
            raise shell.failed(f"the build took longer than {timeout_s:g} s") from None
        await asyncio.to_thread(_keep, made, kept, out)
    finally:
        await asyncio.to_thread(shutil.rmtree, work, True)
    log(f"build: done in {time.monotonic() - started:.1f} s")


def content_key(source: Path, config: FunctionConfig, recipe: Recipe, toolchains: Toolchains) -> str:
    """The name of a build: equal exactly when source, recipe, tools and the runtime's own files are."""
    digest = hashlib.sha256()
    head = (str(RECIPE_VERSION), config.runtime, config.handler, toolchains.identity(recipe.tools))
    for text in head:
        digest.update(f"{len(text)}:{text}".encode())
    _digest_tree(digest, source)
    if recipe.runtime_files is not None:
        _digest_tree(digest, runtimes_dir() / recipe.runtime_files)
    return digest.hexdigest()


def _digest_tree(digest: hashlib._Hash, root: Path) -> None:
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        if stat.S_ISDIR(info.st_mode):
            continue
        if stat.S_ISLNK(info.st_mode):
            content = str(path.readlink()).encode("utf-8", "surrogateescape")
        elif stat.S_ISREG(info.st_mode):
            content = path.read_bytes()
        else:
            raise BuildFailed(f"{path.relative_to(root)} is neither a file nor a folder")
        name = str(path.relative_to(root)).encode("utf-8", "surrogateescape")
        mode = stat.S_IFMT(info.st_mode) | (info.st_mode & 0o111)
        digest.update(b"%d:%s%d:%d:" % (len(name), name, mode, len(content)))
        digest.update(content)


def _shell(
    work: Path,
    runtime: str,
    recipe: Recipe,
    source: Path,
    cache: Path,
    toolchains: Toolchains,
    log: Callable[[str], None],
    wrap: Wrap | None,
) -> BuildShell:
    """The environment of a build. One that executes the user's code gets caches of its own, so that it
    cannot leave anything in what other functions are built from."""
    shared = work / "cache" if recipe.executes_source(source) else cache / "tools" / runtime
    for folder in (work / "home", work / "tmp", shared):
        folder.mkdir(parents=True, exist_ok=True)
    path = [*toolchains.folders(recipe.tools), "/usr/local/bin", "/usr/bin", "/bin"]
    env = {
        **passed_environment(runtime, os.environ),
        "PATH": os.pathsep.join(dict.fromkeys(path)),
        "HOME": str(work / "home"),
        "TMPDIR": str(work / "tmp"),
        "LANG": "C.UTF-8",
        "XDG_CACHE_HOME": str(shared / "xdg"),
        **{name: str(shared / folder) for name, folder in recipe.caches.items()},
    }
    return BuildShell(work, env, [] if shared.is_relative_to(work) else [shared], log, wrap)


def _reuse(kept: Path, out: Path) -> bool:
    """Links a kept build into `out`; False when there is none (any more)."""
    try:
        os.utime(kept)
        _link_tree(kept, out)
    except (FileNotFoundError, shutil.Error):
        for leftover in out.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        return False
    return True


def _keep(made: Path, kept: Path, out: Path) -> None:
    """Moves a finished build into the cache in one step, links it into `out` and drops the oldest ones."""
    for folder, _, names in os.walk(made):
        Path(folder).chmod(0o755)
        for path in (Path(folder, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)
    _link_tree(made, out)
    kept.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(kept)
    except OSError:  # Another build of the same content was first.
        return
    builds = sorted(kept.parent.iterdir(), key=_age)
    for old in builds[:-KEPT_BUILDS]:
        shutil.rmtree(old, ignore_errors=True)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _link_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
