"""Grids for end-to-end tests: one for each isolation level, shared; or one of its own for a test that breaks it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from grid import Grid

LEVELS = [
    "process",
    pytest.param("bwrap", marks=pytest.mark.needs("bwrap")),
    pytest.param("docker", marks=pytest.mark.needs("docker")),
]


@pytest.fixture(scope="session", params=LEVELS)
def grid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """A grid at each isolation level."""
    running = Grid(tmp_path_factory.mktemp(request.param), request.param).start()
    yield running
    assert running.stop() == 0, running.log()[-4000:]


@pytest.fixture(scope="session")
def one_grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """A grid at the process level, for what does not depend on the level."""
    running = Grid(tmp_path_factory.mktemp("one"), "process").start()
    yield running
    assert running.stop() == 0, running.log()[-4000:]


@pytest.fixture
def new_grid(tmp_path: Path) -> Iterator[Callable[..., Grid]]:
    """Makes grids that the test may break."""
    made: list[Grid] = []

    def make(isolation: str = "process", **settings: object) -> Grid:
        made.append(Grid(tmp_path / f"grid{len(made)}", isolation, **settings).start())
        return made[-1]

    yield make
    for grid in made:
        if grid.process is not None and grid.process.poll() is None:
            grid.stop()
