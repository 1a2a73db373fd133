"""The registry port: functions, their versions and aliases."""

from __future__ import annotations

from typing import Protocol

from nanogrid.model.function import Alias, Function, Version


class Registry(Protocol):
    """Every change is a new immutable revision; readers may see an old one for up to 5 s.

    All operations raise NotFound for a function that does not exist or was deleted, Conflict when
    another writer won too often, and StoreUnavailable.
    """

    def cached(self, name: str) -> Function | None:
        """What is in memory and fresh; None means: ask `get`."""
        ...

    async def get(self, name: str) -> Function:
        """The newest revision."""
        ...

    async def refresh(self, name: str) -> Function:
        """The newest revision, read from the store now."""
        ...

    async def list(self) -> list[Function]:
        """All functions, by name."""
        ...

    async def publish(self, version: Version) -> Function:
        """Adds a version under the next number (the given one is ignored) and makes it `$LATEST`."""
        ...

    async def set_alias(self, name: str, alias: str, target: Alias) -> Function:
        """Creates or moves an alias; raises NotFound when a version of it does not exist."""
        ...

    async def delete_alias(self, name: str, alias: str) -> Function:
        """Removes an alias; raises NotFound."""
        ...

    async def rollback(self, name: str, number: int) -> Function:
        """Makes an older version `$LATEST` again."""
        ...

    async def delete(self, name: str) -> None:
        """Ends the function. Its numbers are not used again if it comes back."""
        ...

    def resolve(self, name: str, qualifier: str, draw: float) -> Version:
        """The version that a qualifier means, from memory; `draw` (0..1) decides a weighted alias."""
        ...
