"""The secrets port."""

from __future__ import annotations

from typing import Protocol


class Secrets(Protocol):
    """Named values that functions and stores need; a value never appears in a log or a listing."""

    async def get(self, name: str) -> str:
        """The value; raises NotFound."""
        ...

    async def put(self, name: str, value: str) -> None:
        """Stores or replaces a value."""
        ...

    async def list(self) -> list[str]:
        """The names, in order."""
        ...

    async def delete(self, name: str) -> None:
        """Removes a value; raises NotFound."""
        ...
