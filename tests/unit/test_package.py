"""Hostile archives are refused by name and nothing is written outside; packing is deterministic."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanogrid.deploy.package import Bounds, ignored_by, pack, unpack
from nanogrid.errors import InvalidRequest, TooLarge


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
        for name, data in entries:
            package.writestr(name, data)
    return buffer.getvalue()


def tarred(*entries: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as bundle:
        for entry in entries:
            bundle.addfile(entry, io.BytesIO(bytes(entry.size)))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry


def attempt(tmp_path: Path, data: bytes, bounds: Bounds | None = None) -> Path:
    """Unpacks `data` and checks that nothing appeared beside the folder."""
    archive, to = tmp_path / "archive", tmp_path / "in" / "to"
    archive.write_bytes(data)
    to.mkdir(parents=True)
    try:
        unpack(archive, to, bounds or Bounds())
    finally:
        assert sorted(p.name for p in tmp_path.iterdir()) == ["archive", "in"]
        assert [p.name for p in (tmp_path / "in").iterdir()] == ["to"]
        assert not any(p.is_symlink() for p in to.rglob("*"))
    return to


BAD_NAMES = ["../x", "a/../../x", "/etc/x", "a\\..\\x", "C:/x", "C:x", "a\0b", "x" * 256]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_zip_name_that_could_lead_outside_is_refused(tmp_path: Path, name: str) -> None:
    entry = zipfile.ZipInfo("placeholder")
    entry.filename = name
    with pytest.raises(InvalidRequest) as caught:
        attempt(tmp_path, zipped((entry, b"x")))
    assert repr(name[:2])[1:-1] in caught.value.detail


@pytest.mark.parametrize("name", [n for n in BAD_NAMES if "\0" not in n])
def test_a_tar_name_that_could_lead_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest):
        attempt(tmp_path, tarred(member(name)))


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(InvalidRequest, match="'evil'"):
        attempt(tmp_path, tarred(member("evil", kind, linkname="/etc"), member("evil/passwd")))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("evil")
    entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
    with pytest.raises(InvalidRequest, match="'evil'"):
        attempt(tmp_path, zipped((entry, b"/etc/passwd")))


@pytest.mark.parametrize("names", [("a", "a"), ("a.py", "A.py"), ("é", "e\u0301"), ("a", "a/b"), ("a/b", "a")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_collide_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        attempt(tmp_path, zipped(*((name, b"x") for name in names)))


def test_bombs_are_stopped_by_what_comes_out(tmp_path: Path) -> None:
    for index, (data, bounds) in enumerate(
        (
            (zipped(("a", bytes(20 << 20))), Bounds()),
            (tarred(member("a", size=20 << 20)), Bounds()),
            (zipped(("a", os.urandom(3000))), Bounds(total_bytes=2000)),
            (zipped(*((str(n), b"") for n in range(11))), Bounds(entries=10)),
        )
    ):
        place = tmp_path / str(index)
        place.mkdir()
        with pytest.raises(TooLarge):
            attempt(place, data, bounds)
        assert sum(p.stat().st_size for p in place.rglob("*") if p.is_file() and p.name != "archive") <= 12 << 20


def test_a_size_that_lies_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(("a", bytes(1000))))
    at = data.find(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 10)
    with pytest.raises(InvalidRequest):
        attempt(tmp_path, bytes(data))


def test_a_nested_archive_is_only_a_file(tmp_path: Path) -> None:
    inner = zipped(("../x", b"x"))
    assert (attempt(tmp_path, zipped(("inner.zip", inner))) / "inner.zip").read_bytes() == inner


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\3\4" + bytes(50), b"\x1f\x8b" + bytes(50), zipped(("a", b"x"))[:40]])
def test_damaged_archives_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        attempt(tmp_path, data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.sampled_from("ab./\\:A\u0301~"), min_size=1, max_size=12), min_size=1, max_size=4),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_whatever_the_names_nothing_lands_outside(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], tar: bool
) -> None:
    place = tmp_path_factory.mktemp("case")
    entries = []
    for name in names:
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = name
        entries.append((entry, b"x"))
    data = tarred(*(member(name) for name in names)) if tar else zipped(*entries)
    try:
        attempt(place, data)
    except (InvalidRequest, TooLarge) as refused:
        assert refused.detail


def test_packing_is_deterministic_and_comes_back_whole(tmp_path: Path) -> None:
    out = []
    for name, files in (("one", ("b.py", "a/run.sh")), ("two", ("a/run.sh", "b.py"))):
        folder = tmp_path / name
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(file)
        (folder / "a/run.sh").chmod(0o700)
        os.utime(folder / "b.py", (len(out) * 10**6, 10**9))
        buffer = io.BytesIO()
        pack(folder, buffer)
        out.append(buffer.getvalue())
    assert out[0] == out[1]
    place = tmp_path / "back"
    place.mkdir()
    to = attempt(place, out[0])
    assert (to / "b.py").read_text() == "b.py" and not os.access(to / "b.py", os.X_OK)
    assert (to / "a/run.sh").stat().st_mode & 0o111


def test_what_is_not_wanted_is_left_out(tmp_path: Path) -> None:
    for name in ("main.py", ".git/config", "node_modules/x/i.js", "__pycache__/m.pyc", "secret.pem", "data/big.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".nanogridignore").write_text("# not these\n*.pem\ndata/\n")
    buffer = io.BytesIO()
    pack(tmp_path, buffer, ignored_by(tmp_path))
    assert "main.py" in zipfile.ZipFile(buffer).namelist()
    assert not {"secret.pem", "data/big.bin", ".git/config", "node_modules/x/i.js"} & set(
        zipfile.ZipFile(buffer).namelist()
    )


def test_a_link_out_of_the_folder_is_not_packed(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(InvalidRequest, match="leads out"):
        pack(folder, io.BytesIO())
