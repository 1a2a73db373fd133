"""Archives in and out. What users upload is unpacked as if it wanted to do harm."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final, NamedTuple

from nanogrid.errors import InvalidRequest, TooLarge

BLOCK: Final = 1 << 20
RATIO_FROM: Final = 10 << 20
EPOCH: Final = (1980, 1, 1, 0, 0, 0)
IGNORED: Final = frozenset(
    (".git", "__pycache__", "node_modules", ".venv", ".mypy_cache", ".pytest_cache", ".DS_Store")
)


class Bounds(NamedTuple):
    """What an archive may come to."""

    total_bytes: int = 512 << 20
    entries: int = 100_000
    ratio: int = 100
    """Unpacked to packed size, looked at above 10 MiB."""


class _Entry(NamedTuple):
    name: str
    folder: bool
    executable: bool
    open: Callable[[], IO[bytes]]


def check_entry_name(name: str) -> PurePosixPath:
    """The path of an archive's entry; raises InvalidRequest for one that could lead outside."""
    shown = name[:120]
    if "\\" in name or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise InvalidRequest(
            f"the archive holds {shown!r}: names have no backslashes or control characters, and are UTF-8"
        )
    path = PurePosixPath(name)
    if path.is_absolute() or (len(name) > 1 and name[1] == ":"):
        raise InvalidRequest(f"the archive holds {shown!r}: names must be relative")
    if ".." in path.parts:
        raise InvalidRequest(f"the archive holds {shown!r}: '..' would lead out of the function's folder")
    if not path.parts or any(len(part.encode("utf-8", "replace")) > 255 for part in path.parts) or len(name) > 3000:
        raise InvalidRequest(f"the archive holds {shown!r}: this is no usable file name")
    return path


def unpack(archive: Path, to: Path, bounds: Bounds = Bounds()) -> None:  # noqa: B008 - an immutable tuple
    """Unpacks a zip or tar archive into the empty folder `to`.

    Raises:
        InvalidRequest: the archive is damaged or holds what could do harm; names the entry.
        TooLarge: over a bound, by what really came out and not by what the headers say.
    """
    with archive.open("rb") as file:
        head = file.read(4)
    try:
        if head[:2] == b"PK":
            with zipfile.ZipFile(archive) as package:
                _extract(_zip_entries(package), to, bounds, archive.stat().st_size)
        else:
            with tarfile.open(archive) as bundle:
                _extract(_tar_entries(bundle), to, bounds, archive.stat().st_size)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        OSError,
    ) as error:
        raise InvalidRequest(f"the code is no usable zip or tar archive: {error}") from error
    except Exception as error:
        if type(error).__module__ == "zlib":
            raise InvalidRequest(f"the archive is damaged: {error}") from error
        raise


def _zip_entries(package: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in package.infolist():
        mode = info.external_attr >> 16
        kind = stat.S_IFMT(mode)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InvalidRequest(
                f"the archive holds {info.filename[:120]!r}: only files and folders are allowed, no links or devices"
            )
        if info.flag_bits & 1:
            raise InvalidRequest(f"the archive holds {info.filename[:120]!r}: encrypted entries cannot be read")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # The others inflate without bound in one step.
            raise InvalidRequest(f"the archive holds {info.filename[:120]!r}: only deflate and store are allowed")
        # ZipInfo cuts a name at NUL; the original tells.
        name = info.orig_filename if "\0" in info.orig_filename or "\\" in info.orig_filename else info.filename
        yield _Entry(name, name.endswith("/"), bool(mode & 0o111), lambda info=info: package.open(info))  # type: ignore[misc]


def _tar_entries(bundle: tarfile.TarFile) -> Iterator[_Entry]:
    for member in bundle:
        if not (member.isreg() or member.isdir()) or member.type == tarfile.GNUTYPE_SPARSE or member.sparse is not None:
            raise InvalidRequest(
                f"the archive holds {member.name[:120]!r}: only files and folders are allowed, no links or devices"
            )

        def open_member(member: tarfile.TarInfo = member) -> IO[bytes]:
            return bundle.extractfile(member) or io.BytesIO()

        if member.name not in (".", "./"):
            yield _Entry(member.name, member.isdir(), bool(member.mode & 0o111), open_member)


def _extract(entries: Iterable[_Entry], to: Path, bounds: Bounds, packed: int) -> None:
    seen: dict[str, tuple[str, bool]] = {}
    total = count = 0
    for entry in entries:
        count += 1
        if count > bounds.entries:
            raise TooLarge(f"the archive has more than {bounds.entries} entries")
        path = check_entry_name(entry.name)
        _check_collision(path, entry.folder, seen)
        target = to / path
        if entry.folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(
            target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o755 if entry.executable else 0o644
        )
        with os.fdopen(handle, "wb") as out, entry.open() as source:
            while block := source.read(BLOCK):
                total += len(block)
                if total > bounds.total_bytes:
                    raise TooLarge(f"the archive unpacks to more than {bounds.total_bytes >> 20} MiB")
                if total > RATIO_FROM and total > packed * bounds.ratio:
                    raise TooLarge(
                        f"the archive unpacks to more than {bounds.ratio} times its size, at {entry.name[:120]!r}"
                    )
                out.write(block)


def _check_collision(path: PurePosixPath, folder: bool, seen: dict[str, tuple[str, bool]]) -> None:
    """Two names that are one on some file system: refused, because which one wins would depend on it."""
    for parent in list(path.parents)[:-1]:
        key = unicodedata.normalize("NFC", str(parent)).casefold()
        if seen.setdefault(key, (str(parent), True)) != (str(parent), True):
            raise InvalidRequest(
                f"the archive holds {str(path)[:120]!r} below a file, or below a folder whose name differs in case only"
            )
    key = unicodedata.normalize("NFC", str(path)).casefold()
    if key in seen and not (folder and seen[key] == (str(path), True)):
        raise InvalidRequest(
            f"the archive holds {str(path)[:120]!r} twice (names that differ only in case count as the same)"
        )
    seen[key] = (str(path), folder)


def ignored_by(folder: Path) -> Callable[[str], bool]:
    """Which names a deploy leaves out: what nobody wants, and the patterns in `.nanogridignore`."""
    import fnmatch

    file = folder / ".nanogridignore"
    patterns = [line.strip() for line in file.read_text().splitlines()] if file.exists() else []
    patterns = [line.rstrip("/") for line in patterns if line and not line.startswith("#")]

    def ignored(relative: str) -> bool:
        name = relative.rpartition("/")[2]
        return name in IGNORED or any(fnmatch.fnmatch(relative, p) or fnmatch.fnmatch(name, p) for p in patterns)

    return ignored


def pack(folder: Path, to: IO[bytes], ignored: Callable[[str], bool] = lambda relative: False) -> None:
    """Writes a zip of `folder`: the same tree gives the same bytes.

    Raises:
        InvalidRequest: a link leads out of the folder.
    """
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as package:
        for path, name in sorted(_walk(folder, ignored), key=lambda pair: pair[1]):
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise InvalidRequest(f"{path} is a link that leads out of {folder}: copy the file instead")
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = (stat.S_IFREG | (0o755 if os.access(path, os.X_OK) else 0o644)) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            with path.open("rb") as source, package.open(info, "w") as out:
                while block := source.read(BLOCK):
                    out.write(block)


def _walk(folder: Path, ignored: Callable[[str], bool]) -> Iterator[tuple[Path, str]]:
    for here, folders, files in os.walk(folder):
        base = Path(here).relative_to(folder)
        folders[:] = [name for name in folders if not ignored((base / name).as_posix())]
        for name in files:
            relative = (base / name).as_posix()
            path = Path(here, name)
            if not ignored(relative) and path.is_file():
                yield path, relative
