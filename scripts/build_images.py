"""Builds the images that the Docker Engine lacks, so that no first call waits for one."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiodocker

from nanogrid.errors import NanoGridError
from nanogrid.sandbox.docker_images import ensure_image
from nanogrid.settings import load


async def build_all(runtimes: Path) -> None:
    """Every folder below `runtimes` with a Dockerfile is a family."""
    base = load().base_image
    async with aiodocker.Docker() as engine:
        for dockerfile in sorted(runtimes.glob("*/Dockerfile")):
            print(await ensure_image(engine, dockerfile.parent.name, runtimes, base, print), flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(build_all(Path(__file__).resolve().parent.parent / "runtimes"))
    except NanoGridError as error:
        sys.exit(error.detail)
