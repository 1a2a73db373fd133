"""One deploy, start to end. Nothing is visible before the last step, so nothing is ever half-deployed."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from nanogrid.deploy.build import build
from nanogrid.deploy.package import pack, unpack
from nanogrid.deploy.toolchains import Toolchains
from nanogrid.errors import InvalidRequest, NotFound
from nanogrid.model.function import Function, FunctionConfig, Version, check_config
from nanogrid.model.names import code_key
from nanogrid.objects.base import ObjectStore
from nanogrid.registry.base import Registry

Probe = Callable[[Version, Path], Awaitable[None]]
Log = Callable[[str], None]


class Publisher:
    """Serves deploys, a few at a time."""

    def __init__(
        self,
        objects: ObjectStore,
        registry: Registry,
        scratch: Path,
        cache: Path,
        toolchains: Toolchains,
        probe: Probe | None,
    ) -> None:
        self._objects = objects
        self._registry = registry
        self._scratch = scratch
        self._cache = cache
        self._toolchains = toolchains
        self._probe = probe
        self._turns = asyncio.Semaphore(max(1, os.cpu_count() or 1))
        scratch.mkdir(parents=True, exist_ok=True)

    async def deploy(self, config: FunctionConfig, archive: Path, log: Log) -> tuple[Function, Version]:
        """Makes a version of an uploaded archive and `$LATEST` of it; the same code and config make no new one.

        Raises:
            InvalidRequest, TooLarge: the config or the archive.
            BuildFailed: with the end of the build's output.
        """
        config = check_config(config)
        async with self._turns:
            folder = Path(tempfile.mkdtemp(dir=self._scratch))
            try:
                return await self._deploy(config, archive, folder, log)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _deploy(self, config: FunctionConfig, archive: Path, folder: Path, log: Log) -> tuple[Function, Version]:
        source, built = folder / "source", folder / "built"
        source.mkdir()
        built.mkdir()
        folder.chmod(0o755)
        await asyncio.to_thread(unpack, archive, source)
        if not any(source.iterdir()):
            raise InvalidRequest("the archive is empty: put the function's files into it")
        await build(source, config, built, log, self._cache, self._toolchains)
        code = await asyncio.to_thread(_packed, built)
        sha256 = hashlib.sha256(code).hexdigest()
        version = Version(
            function=config.name, number=0, config=config, code_key=code_key(sha256), code_sha256=sha256,
            code_size=len(code), created_at=time.time(),
        )  # fmt: skip
        same = await self._same(version)
        if same is not None:
            log(f"unchanged: version {same[1].number} has this code and config already")
            return same
        if self._probe is not None:
            log("checking that the handler loads")
            await self._probe(version, built)
        await self._objects.put(version.code_key, code)
        function = await self._registry.publish(version)
        published = function.versions[str(function.latest)]
        log(f"published version {published.number}")
        return function, published

    async def _same(self, version: Version) -> tuple[Function, Version] | None:
        try:
            function = await self._registry.refresh(version.function)
        except NotFound:
            return None
        latest = function.versions[str(function.latest)]
        candidate = msgspec.structs.replace(version, number=latest.number, created_at=latest.created_at)
        return (function, latest) if candidate == latest else None


def _packed(folder: Path) -> bytes:
    package = io.BytesIO()
    pack(folder, package)
    return package.getvalue()
