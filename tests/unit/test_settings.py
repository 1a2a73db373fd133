"""Settings: order of the sources, and all mistakes named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanogrid.errors import ConfigError
from nanogrid.settings import Settings, load


def test_overrides_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "nanogrid.toml"
    file.write_text("[grid]\nport = 1\nworkers = 3\nspares = 5\n")
    settings = load({"port": 3}, {"NANOGRID_PORT": "2", "NANOGRID_WORKERS": "4"}, file)
    assert (settings.port, settings.workers, settings.spares) == (3, 4, 5)
    assert settings.lease_s == Settings().lease_s


def test_every_mistake_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, {"NANOGRID_PROT": "1", "NANOGRID_PORT": "eighty", "NANOGRID_WORKERS": "0"})
    for part in ("NANOGRID_PROT", "port = 'eighty'", "workers = '0'"):
        assert part in caught.value.detail


def test_the_command_line_variables_are_no_settings() -> None:
    load({}, {"NANOGRID_URL": "http://x", "NANOGRID_API_KEY": "k"})
