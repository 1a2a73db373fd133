"""Fixtures that several unit tests share."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from native_driver import Driver


@pytest.fixture
def boot() -> Iterator[Callable[[], Driver]]:
    with contextlib.ExitStack() as stack:

        def make() -> Driver:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ng-"))
            driver = Driver(Path(folder))
            stack.callback(driver.close)
            return driver

        yield make
