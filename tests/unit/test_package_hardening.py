"""Archives that cost memory, or whose names mean trouble later."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from test_package import attempt, member, tarred, zipped

from nanogrid.errors import InvalidRequest


@pytest.mark.parametrize("name", ["\0", "a\nb", "a\x1b[31m"])
def test_control_characters_are_refused(tmp_path: Path, name: str) -> None:
    entry = zipfile.ZipInfo("placeholder")
    entry.filename = name
    with pytest.raises(InvalidRequest):
        attempt(tmp_path, zipped((entry, b"x")))


def test_folders_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="case"):
        attempt(tmp_path, zipped(("A/x", b"1"), ("a/y", b"2")))


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_inflate_without_bound_are_refused(tmp_path: Path, kind: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as package:
        package.writestr("a", b"x")
    with pytest.raises(InvalidRequest, match="deflate"):
        attempt(tmp_path, buffer.getvalue())


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        attempt(tmp_path, tarred(member("a\udcff")))
