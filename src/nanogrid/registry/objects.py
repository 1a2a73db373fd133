"""The registry on an object store: `functions/<name>/rev/<n>`, each put if absent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from nanogrid.errors import Conflict, InvalidRequest, NotFound
from nanogrid.model.function import Alias, Function, Version, check_name
from nanogrid.model.names import function_prefix, function_revision
from nanogrid.objects.base import ObjectStore

FRESH_S: Final = 5.0
TRIES: Final = 20
TOPIC: Final = "registry:"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Function).decode


def choose(function: Function, qualifier: str, draw: float) -> Version:
    """The version of `function` that `qualifier` means.

    Raises:
        NotFound: and says what there is.
    """
    if qualifier == "$LATEST":
        return function.versions[str(function.latest)]
    version = function.versions.get(qualifier)
    if version is not None:
        return version
    alias = function.aliases.get(qualifier)
    if alias is None:
        known = [*sorted(function.versions, key=int), *sorted(function.aliases)]
        raise NotFound(
            f"function {function.name!r} has no version or alias {qualifier[:80]!r}:"
            f" it has {', '.join(known[-20:])} and $LATEST"
        )
    for number, weight in alias.weights.items():
        if draw < weight:
            return function.versions[number]
        draw -= weight
    return function.versions[str(alias.version)]


class ObjectRegistry:
    """Caches what it read; `publish` and `subscribe` tell other processes of changes."""

    def __init__(
        self,
        objects: ObjectStore,
        publish: Callable[[str], None] = lambda topic: None,
        subscribe: Callable[[str, Callable[[str, bytes], None]], object] = lambda topic, listener: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._publish = publish
        self._clock = clock
        self._known: dict[str, tuple[float, Function]] = {}
        subscribe(TOPIC, self._changed)

    def _changed(self, topic: str, data: bytes) -> None:
        self._known.pop(topic.removeprefix(TOPIC), None)

    def cached(self, name: str) -> Function | None:
        """See the port."""
        known = self._known.get(name)
        return known[1] if known is not None and self._clock() - known[0] < FRESH_S else None

    async def get(self, name: str) -> Function:
        """See the port."""
        return self.cached(name) or await self.refresh(name)

    async def refresh(self, name: str) -> Function:
        """See the port."""
        function = await self._newest(name)
        if function is None or function.deleted:
            self._known.pop(name, None)
            raise NotFound(f"no function {name[:80]!r}: deploy it, or see what there is with `nanogrid functions ls`")
        self._known[name] = (self._clock(), function)
        return function

    async def _newest(self, name: str) -> Function | None:
        check_name(name)
        known = self._known.get(name)
        after = function_revision(name, known[1].revision) if known is not None else ""
        last = ""
        async for key in self._objects.list(function_prefix(name), after=after):
            last = key
        if last:
            return _decode(await self._objects.get(last))
        return known[1] if known is not None else None

    async def list(self) -> list[Function]:
        """See the port."""
        newest: dict[str, str] = {}
        async for key in self._objects.list("functions/"):
            newest[key.split("/")[1]] = key
        found = []
        for name, key in newest.items():
            known = self._known.get(name)
            function = known[1] if known is not None and function_revision(name, known[1].revision) == key else None
            function = function or _decode(await self._objects.get(key))
            if not function.deleted:
                self._known[name] = (self._clock(), function)
                found.append(function)
        return sorted(found, key=lambda function: function.name)

    async def _change(self, name: str, change: Callable[[Function | None], Function]) -> Function:
        for _ in range(TRIES):
            before = await self._newest(name)
            after = change(before)
            after = msgspec.structs.replace(
                after, revision=before.revision + 1 if before else 1, updated_at=time.time()
            )
            try:
                await self._objects.put(function_revision(name, after.revision), _encode(after), create=True)
            except Conflict:
                self._known.pop(name, None)
                continue
            self._publish(TOPIC + name)
            self._known[name] = (self._clock(), after)
            return after
        raise Conflict(f"function {name!r} is being changed by too many at once: try again")

    async def publish(self, version: Version) -> Function:
        """See the port."""

        def change(before: Function | None) -> Function:
            number = max((int(n) for n in before.versions), default=0) + 1 if before else 1
            fresh = msgspec.structs.replace(version, number=number)
            versions = {**before.versions, str(number): fresh} if before else {"1": fresh}
            gone = before is None or before.deleted
            return Function(
                name=version.function,
                revision=0,
                versions=versions,
                latest=number,
                aliases={} if gone or before is None else before.aliases,
                created_at=version.created_at if gone or before is None else before.created_at,
            )

        return await self._change(version.function, change)

    async def set_alias(self, name: str, alias: str, target: Alias) -> Function:
        """See the port."""
        check_name(alias, "alias")
        if alias.isdigit():
            raise InvalidRequest(f"alias {alias!r} looks like a version number: use a name with a letter in it")
        if not 0.0 <= sum(target.weights.values()) <= 1.0 or min(target.weights.values(), default=0.0) < 0.0:
            raise InvalidRequest("weights: each must be between 0 and 1, and together they may not be over 1")

        def change(before: Function | None) -> Function:
            function = _alive(name, before)
            for number in (str(target.version), *target.weights):
                if number not in function.versions:
                    raise NotFound(
                        f"function {name!r} has no version {number}: it has 1 to {max(map(int, function.versions))}"
                    )
            return msgspec.structs.replace(function, aliases={**function.aliases, alias: target})

        return await self._change(name, change)

    async def delete_alias(self, name: str, alias: str) -> Function:
        """See the port."""

        def change(before: Function | None) -> Function:
            function = _alive(name, before)
            if alias not in function.aliases:
                raise NotFound(f"function {name!r} has no alias {alias!r}")
            return msgspec.structs.replace(function, aliases={k: v for k, v in function.aliases.items() if k != alias})

        return await self._change(name, change)

    async def rollback(self, name: str, number: int) -> Function:
        """See the port."""

        def change(before: Function | None) -> Function:
            function = _alive(name, before)
            if str(number) not in function.versions:
                raise NotFound(
                    f"function {name!r} has no version {number}: it has 1 to {max(map(int, function.versions))}"
                )
            return msgspec.structs.replace(function, latest=number)

        return await self._change(name, change)

    async def delete(self, name: str) -> None:
        """See the port."""
        await self._change(name, lambda before: msgspec.structs.replace(_alive(name, before), deleted=True, aliases={}))
        self._known.pop(name, None)

    def resolve(self, name: str, qualifier: str, draw: float) -> Version:
        """See the port."""
        function = self.cached(name)
        if function is None or function.deleted:
            raise NotFound(f"no function {name[:80]!r}: deploy it, or see what there is with `nanogrid functions ls`")
        return choose(function, qualifier, draw)


def _alive(name: str, function: Function | None) -> Function:
    if function is None or function.deleted:
        raise NotFound(f"no function {name[:80]!r}: deploy it, or see what there is with `nanogrid functions ls`")
    return function
