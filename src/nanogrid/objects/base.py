"""The object store port: code, large payloads and the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol


class ObjectStore(Protocol):
    """Whole objects by key. Reads see every finished write (strong consistency).

    All operations raise StoreUnavailable when the store cannot answer, and may be called concurrently.
    """

    async def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """Stores `data` whole or not at all. With `create` raises Conflict when the key exists already:
        of any number of concurrent creators exactly one succeeds."""
        ...

    async def get(self, key: str) -> bytes:
        """Returns the bytes; raises NotFound."""
        ...

    async def delete(self, key: str) -> None:
        """Removes the object; deleting what is not there is no error."""
        ...

    def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        """Keys that start with `prefix`, in order, those greater than `after` only."""
        ...

    async def close(self) -> None:
        """Frees connections; the store may not be used afterwards."""
        ...
