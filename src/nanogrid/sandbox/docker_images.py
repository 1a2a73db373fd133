"""The images that docker sandboxes start from: one per runtime family, built where they are used.

An image is named after what goes into it (`nanogrid/<family>:<hash of the folder and the base>`), so a new
bootstrap makes a new image and an old one is never started by mistake. Nothing is pushed anywhere; the base
image comes from the engine, which pulls it when it does not have it.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import aiodocker
import msgspec
from aiodocker.exceptions import DockerError

from nanogrid.errors import SandboxFailed

LABEL: Final = "nanogrid.family"
PROXY_SETTINGS: Final = ("http_proxy", "https_proxy", "no_proxy")
"""This machine's settings that Docker knows as build arguments: used while building, not kept."""
OUTPUT_KEPT: Final = 30
"""Lines of a failed build that the error shows."""
SKIPPED: Final = ("__pycache__", "node_modules", ".mypy_cache")


def image_files(folder: Path) -> list[tuple[str, Path]]:
    """What goes into a family's image: (path in the build context, file) in order."""
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        found += [(str(Path(here, name).relative_to(folder)), Path(here, name)) for name in sorted(files)]
    return sorted(found)


def image_tag(family: str, runtimes: Path, base: str) -> str:
    """The image's name. It depends on the files' names, contents and executable bits, and on the base."""
    digest = hashlib.sha256(base.encode())
    for name, file in image_files(runtimes / family):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"\n{name}\0{_mode(file):o}\0{content}".encode())
    return f"nanogrid/{family}:{digest.hexdigest()[:16]}"


def build_context(folder: Path) -> bytes:
    """The folder as a tar, the same bytes for the same content, so that the engine's build cache can hit."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, file in image_files(folder):
            data = file.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = _mode(file)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _mode(file: Path) -> int:
    return 0o755 if file.stat().st_mode & 0o100 else 0o644


def build_arguments(base: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The base image and this machine's proxies, in the spelling that the package managers read."""
    found = {name: environ.get(name) or environ.get(name.upper()) for name in PROXY_SETTINGS}
    return {"BASE": base} | {name: value for name, value in found.items() if value}


async def ensure_image(
    engine: aiodocker.Docker, family: str, runtimes: Path, base: str, log: Callable[[str], None]
) -> str:
    """The name of the image of `family`, which the engine has when this returns; built if it was missing.

    A build takes a minute or so and needs the Debian packages that the family's Dockerfile names. Two callers
    at once build twice, with the same outcome.

    Args:
        runtimes: The folder with one folder per family.
        base: The image to build from.
        log: Called with a line of the build's progress.

    Raises:
        SandboxFailed: the build failed; the detail ends with what it printed.
    """
    folder = runtimes / family
    if not (folder / "Dockerfile").is_file():
        raise SandboxFailed(f"{folder} has no Dockerfile, so there is no image for {family} functions")
    tag = image_tag(family, runtimes, base)
    try:
        await engine.images.inspect(tag)
        return tag
    except DockerError as error:
        if error.status != 404:
            raise
    log(f"building the image {tag} from {base}, once")
    await _build(engine, family, folder, tag, base, log)
    return tag


async def _build(
    engine: aiodocker.Docker, family: str, folder: Path, tag: str, base: str, log: Callable[[str], None]
) -> None:
    parameters = {
        "t": tag,
        "rm": "1",
        "forcerm": "1",
        # The package managers of the build use this machine's own resolver and routes.
        "networkmode": "host",
        "buildargs": msgspec.json.encode(build_arguments(base, os.environ)).decode(),
        "labels": msgspec.json.encode({LABEL: family}).decode(),
    }
    # `images.build` cannot choose the network, hence the request itself.
    request = engine._query(
        "build",
        "POST",
        params=parameters,
        data=build_context(folder),
        headers={"Content-Type": "application/x-tar"},
        timeout=None,
    )
    printed: list[str] = []
    error: str | None = None
    try:
        async with request as answer:
            async for line in answer.content:
                event = msgspec.json.decode(line, type=dict[str, Any])
                error = event.get("error", error)
                _note(str(event.get("stream", "")), printed, log)
    except DockerError as refused:
        error = refused.message
    if error is not None:
        end = "\n".join(printed[-OUTPUT_KEPT:])
        raise SandboxFailed(
            f"the image of {family} functions could not be built from {base}: {error}. "
            f"The Docker Engine must have {base} or be able to pull it (setting base_image), "
            f"and must reach its package mirror.\n{end}".rstrip()
        )


def _note(output: str, printed: list[str], log: Callable[[str], None]) -> None:
    for line in output.splitlines():
        if line.strip():
            printed.append(line)
            if line.startswith("Step "):
                log(line)
