"""A place for sandboxes at each isolation level that keeps functions apart."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox_driver import ISOLATED, Grid


@pytest.fixture(params=ISOLATED)
async def grid(request: pytest.FixtureRequest) -> AsyncIterator[Grid]:
    with tempfile.TemporaryDirectory(prefix="ng-") as folder:
        grid = Grid(request.param, Path(folder))
        yield grid
        await grid.close()
