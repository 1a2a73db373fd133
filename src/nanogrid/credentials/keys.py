"""API keys: shown once, kept as an HMAC, scoped, revocable.

A key is `ng_<8 characters id>_<43 characters random>_<6 characters checksum>`: 256 random bits need no slow hash, and
secret scanners can match the form.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import re
import secrets
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from nanogrid.credentials.file import locked, random_key_file, write_private
from nanogrid.errors import InvalidRequest, NotFound

SCOPES: Final = ("invoke", "deploy", "read", "admin")
FORM: Final = re.compile(r"ng_([0-9a-f]{8})_[A-Za-z0-9_-]{43}_([0-9a-f]{6})")
VERDICT_S: Final = 2.0
"""How long a verdict is kept: a revoked key is refused everywhere within it."""
VERDICTS: Final = 10_000


class Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a key; never the key itself. Times are seconds since the epoch."""

    id: str
    name: str
    digest: str
    scopes: list[str]
    functions: str = "*"
    """A pattern of function names that `invoke`, `deploy` and `read` are limited to."""
    created_at: float = 0.0
    expires_at: float | None = None

    def allows(self, scope: str, function: str | None = None) -> bool:
        """Whether it may do what needs `scope`, to `function` if that matters."""
        if "admin" in self.scopes:
            return True
        return scope in self.scopes and (
            function is None or self.functions == "*" or fnmatch.fnmatchcase(function, self.functions)
        )

    def public(self) -> dict[str, object]:
        """As the API lists it."""
        return {name: getattr(self, name) for name in self.__struct_fields__ if name != "digest"}


class Keys:
    """The keys of a grid, in one private file that all its processes read."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._file = folder / "keys.json"
        self._lock = folder / "keys.lock"
        self._pepper_file = folder / "keys.pepper"
        self._clock = clock
        self._verdicts: dict[str, tuple[float, Key | None]] = {}

    def verify(self, plaintext: str) -> Key | None:
        """The key that `plaintext` is, None when it is unknown, expired or revoked. Never blocks for long."""
        now = self._clock()
        verdict = self._verdicts.get(plaintext)
        if verdict is not None and 0 <= now - verdict[0] < VERDICT_S:
            return verdict[1]
        key = self._check(plaintext, now)
        if len(self._verdicts) >= VERDICTS:
            self._verdicts.clear()
        self._verdicts[plaintext] = (now, key)
        return key

    def _check(self, plaintext: str, now: float) -> Key | None:
        match = FORM.fullmatch(plaintext)
        if match is None or not hmac.compare_digest(match[2], _checksum(plaintext[:-7])):
            return None
        key = self._read().get(match[1])
        if key is None or not hmac.compare_digest(key.digest, self._digest(plaintext)):
            return None
        return None if key.expires_at is not None and key.expires_at <= now else key

    def create(
        self, name: str, scopes: list[str], functions: str = "*", expires_at: float | None = None
    ) -> tuple[Key, str]:
        """Makes a key; the second value is the only time that its plaintext is seen.

        Raises:
            InvalidRequest: an unknown scope.
        """
        wrong = [scope for scope in scopes if scope not in SCOPES]
        if wrong or not scopes:
            raise InvalidRequest(f"scopes: {', '.join(wrong) or 'none given'}: use some of {', '.join(SCOPES)}")
        body = f"ng_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
        plaintext = f"{body}_{_checksum(body)}"
        key = Key(
            id=body[3:11], name=name, digest=self._digest(plaintext), scopes=scopes, functions=functions,
            created_at=self._clock(), expires_at=expires_at,
        )  # fmt: skip
        with locked(self._lock):
            self._write({**self._read(), key.id: key})
        return key, plaintext

    def revoke(self, id: str) -> None:
        """Ends a key; raises NotFound."""
        with locked(self._lock):
            keys = self._read()
            if keys.pop(id, None) is None:
                raise NotFound(f"no key {id!r}")
            self._write(keys)
        self._verdicts.clear()

    def list(self) -> list[Key]:
        """All keys, oldest first."""
        return sorted(self._read().values(), key=lambda key: key.created_at)

    def bootstrap(self, file: Path) -> str:
        """The first key, with all scopes: kept in `file` (private), so that the next start shows the same."""
        if file.exists():
            plaintext = file.read_text().strip()
            if self.verify(plaintext) is not None:
                return plaintext
        _, plaintext = self.create("bootstrap", list(SCOPES))
        write_private(file, plaintext.encode() + b"\n")
        return plaintext

    def _digest(self, plaintext: str) -> str:
        return hmac.new(random_key_file(self._pepper_file), plaintext.encode(), hashlib.sha256).hexdigest()

    def _read(self) -> dict[str, Key]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, Key])
        except FileNotFoundError:
            return {}

    def _write(self, keys: dict[str, Key]) -> None:
        write_private(self._file, msgspec.json.encode(keys))


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()) & 0xFFFFFF:06x}"
