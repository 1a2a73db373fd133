"""What all tests share: the rule for parts of the outside world that may be missing."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def _docker() -> str | None:
    try:
        subprocess.run(["docker", "info"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "no Docker Engine answers"
    return None


def _bwrap() -> str | None:
    from nanogrid.sandbox.bwrap import find_bwrap

    return None if find_bwrap() else "bubblewrap is not installed"


def _tool(name: str) -> str | None:
    return None if shutil.which(name) else f"{name} is not installed"


def missing(part: str, _seen: dict[str, str | None] = {}) -> str | None:  # noqa: B006 - a cache on purpose
    """Why `part` cannot be used here, or None when it can."""
    if part not in _seen:
        _seen[part] = {"docker": _docker, "bwrap": _bwrap}.get(part, lambda: _tool(part))()
    return _seen[part]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A missing part is a skip on a laptop and a failure in CI."""
    for mark in item.iter_markers("needs"):
        for part in mark.args:
            reason = missing(part)
            if reason and os.environ.get("CI"):
                pytest.fail(f"CI must provide {part}: {reason}", pytrace=False)
            if reason:
                pytest.skip(f"{part}: {reason}")
