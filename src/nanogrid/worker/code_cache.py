"""Unpacked code of versions on this machine's disk, shared by its workers, by content."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from nanogrid.errors import StoreUnavailable
from nanogrid.model.function import Version
from nanogrid.objects.base import ObjectStore


class CodeCache:
    """Folders by the hash of the code package. A folder appears whole or not at all."""

    def __init__(self, objects: ObjectStore, root: Path) -> None:
        self._objects = objects
        self._root = root
        self._known: dict[str, Path] = {}
        self._fetching: dict[str, asyncio.Future[Path]] = {}
        root.mkdir(parents=True, exist_ok=True)

    async def folder(self, version: Version) -> Path:
        """The unpacked code; fetched at the first call, then from memory.

        Raises:
            StoreUnavailable: the store does not answer, or what it holds is not what was published.
        """
        sha = version.code_sha256
        known = self._known.get(sha)
        if known is not None:
            return known
        fetching = self._fetching.get(sha)
        if fetching is None:
            fetching = self._fetching[sha] = asyncio.ensure_future(self._fetch(version))
            fetching.add_done_callback(lambda _: self._fetching.pop(sha, None))
        return await asyncio.shield(fetching)

    async def _fetch(self, version: Version) -> Path:
        folder = self._root / version.code_sha256
        if not folder.is_dir():
            data = await self._objects.get(version.code_key)
            if hashlib.sha256(data).hexdigest() != version.code_sha256:
                raise StoreUnavailable(f"the code of {version.label} in the object store is damaged: deploy it again")
            if len(data) < 65536:
                self._unpack(data, folder)
            else:
                await asyncio.to_thread(self._unpack, data, folder)
        self._known[version.code_sha256] = folder
        return folder

    def _unpack(self, data: bytes, folder: Path) -> None:
        # Our own packages, made at publish from an unpacked and checked tree.
        temporary = Path(tempfile.mkdtemp(dir=self._root))
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as package:
                for entry in package.infolist():
                    target = Path(package.extract(entry, temporary))
                    if not entry.is_dir():
                        target.chmod(0o755 if (entry.external_attr >> 16) & 0o111 else 0o644)
            temporary.chmod(0o755)
            os.rename(temporary, folder)  # noqa: PTH104 - fails when another worker was first
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
