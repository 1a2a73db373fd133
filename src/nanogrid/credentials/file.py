"""Secrets in one encrypted file, its key in another that only this user may read."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from nanogrid.errors import NotFound, StoreUnavailable
from nanogrid.model.function import check_name


def write_private(path: Path, data: bytes) -> None:
    """Replaces a file whole, readable by this user only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def random_key_file(path: Path) -> bytes:
    """32 random bytes that stay the same: made at the first call, by whoever of several processes is first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(os.urandom(32))
                file.flush()
                os.fsync(file.fileno())
            # A link appears whole, and never in place of one that is there.
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(temporary)
        finally:
            Path(temporary).unlink(missing_ok=True)
    key = path.read_bytes()
    if len(key) != 32:
        raise StoreUnavailable(f"the key file {path} is damaged: it has {len(key)} bytes and not 32")
    return key


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process at a time change the file beside the lock."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class FileSecrets:
    """For one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "secrets.enc"

    def _read(self) -> dict[str, str]:
        box = Fernet(base64.urlsafe_b64encode(random_key_file(self._folder / "secrets.key")))
        try:
            values: dict[str, str] = json.loads(box.decrypt(self._file.read_bytes()))
        except FileNotFoundError:
            return {}
        except (InvalidToken, ValueError) as error:
            raise StoreUnavailable(f"{self._file} cannot be decrypted with the key beside it") from error
        return values

    def _change(self, name: str, value: str | None) -> None:
        with locked(self._folder / "secrets.lock"):
            values = self._read()
            if value is None and values.pop(name, None) is None:
                raise NotFound(f"no secret {name!r}")
            if value is not None:
                values[name] = value
            box = Fernet(base64.urlsafe_b64encode(random_key_file(self._folder / "secrets.key")))
            write_private(self._file, box.encrypt(json.dumps(values).encode()))

    async def get(self, name: str) -> str:
        """See the port."""
        values = await asyncio.to_thread(self._read)
        if name not in values:
            raise NotFound(f"no secret {name!r}: set it with `nanogrid secret put {name}`")
        return values[name]

    async def put(self, name: str, value: str) -> None:
        """See the port."""
        await asyncio.to_thread(self._change, check_name(name, "secret name"), value)

    async def list(self) -> list[str]:
        """See the port."""
        return sorted(await asyncio.to_thread(self._read))

    async def delete(self, name: str) -> None:
        """See the port."""
        await asyncio.to_thread(self._change, name, None)
