"""Invocations that ran out of attempts: kept on the object store until somebody looks after them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from nanogrid.errors import NotFound
from nanogrid.model.invocation import Invocation
from nanogrid.model.names import dead_letter_key
from nanogrid.objects.base import ObjectStore

_decode = msgspec.msgpack.Decoder(Invocation).decode


class DeadLetters:
    """Workers put them there; `again` submits the event of one as a new invocation."""

    def __init__(self, objects: ObjectStore, again: Callable[[Invocation], Awaitable[Invocation]]) -> None:
        self._objects = objects
        self._again = again

    async def get(self, id: str) -> Invocation:
        """One dead letter, event included; raises NotFound."""
        try:
            return _decode(await self._objects.get(dead_letter_key(id)))
        except NotFound as error:
            raise NotFound(f"no dead letter {id[:80]!r}") from error

    async def list(self, limit: int = 100, after: str = "") -> list[Invocation]:
        """Dead letters in the order of their ids."""
        found: list[Invocation] = []
        async for key in self._objects.list(dead_letter_key(""), after=dead_letter_key(after) if after else ""):
            try:
                found.append(_decode(await self._objects.get(key)))
            except NotFound:
                continue
            if len(found) >= limit:
                break
        return found

    async def redrive(self, id: str) -> Invocation:
        """Runs a dead letter again, as a new invocation, and takes it off the list."""
        again = await self._again(await self.get(id))
        await self._objects.delete(dead_letter_key(id))
        return again

    async def delete(self, id: str) -> None:
        """Forgets a dead letter; deleting what is not there is no error."""
        await self._objects.delete(dead_letter_key(id))
