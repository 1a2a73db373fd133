"""The object store on a local folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore

from nanogrid.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable


class LocalObjects:
    """One file an object; a put appears whole or not at all."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)
        self._root = root
        self._store = LocalStore(str(root))

    async def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See the port."""
        try:
            await obstore.put_async(self._store, _checked(key), data, mode="create" if create else "overwrite")
        except AlreadyExistsError as error:
            raise Conflict(f"object {key!r} exists already") from error
        except OSError as error:
            raise StoreUnavailable(
                f"the object store at {self._root} does not take {key!r}: {error.strerror}"
            ) from error
        except obstore.exceptions.BaseError as error:
            raise StoreUnavailable(f"the object store at {self._root} does not take {key!r}") from error

    async def get(self, key: str) -> bytes:
        """See the port."""
        try:
            return bytes(await (await obstore.get_async(self._store, _checked(key))).bytes_async())
        except FileNotFoundError as error:
            raise NotFound(f"no object {key!r}") from error
        except obstore.exceptions.BaseError as error:
            raise StoreUnavailable(f"the object store at {self._root} does not give {key!r}") from error

    async def delete(self, key: str) -> None:
        """See the port."""
        try:
            await obstore.delete_async(self._store, _checked(key))
        except FileNotFoundError:
            return
        except obstore.exceptions.BaseError as error:
            raise StoreUnavailable(f"the object store at {self._root} does not delete {key!r}") from error

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        """See the port."""
        if prefix:
            _checked(prefix.removesuffix("/"))
        folder = prefix.rpartition("/")[0]
        for key in await asyncio.to_thread(self._walk, folder):
            if key.startswith(prefix) and key > after:
                yield key

    def _walk(self, folder: str) -> Sequence[str]:
        return sorted(
            Path(here, name).relative_to(self._root).as_posix()
            for here, _, names in os.walk(self._root / folder)
            for name in names
            if "#" not in name
        )

    async def close(self) -> None:
        """Nothing is held open."""


def _checked(key: str) -> str:
    # The store keeps what is half written under a name with "#".
    if "\0" in key or "#" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise InvalidRequest(f"{key[:80]!r} is not an object key")
    return key
