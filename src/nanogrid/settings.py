"""All settings: `NANOGRID_*` environment over a TOML file's `[grid]` table over these defaults.

Read once into a frozen object. Unknown keys and wrong values stop the boot, all listed together.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from nanogrid.errors import ConfigError

PREFIX = "NANOGRID_"
# Read by the command line and by tests, not by a grid.
NOT_SETTINGS = frozenset(("NANOGRID_URL", "NANOGRID_API_KEY", "NANOGRID_TF_PLUGIN_DIR"))

At0 = Annotated[float, msgspec.Meta(ge=0)]
At1 = Annotated[int, msgspec.Meta(ge=1)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every setting of a grid; the comment behind each is its documentation (`docs/settings.md`)."""

    host: str = "127.0.0.1"
    """Address that the controller binds; anything but loopback needs TLS in front."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080
    """Port of the controller; 0 takes a free one."""
    data: str = "data"
    """Folder that holds everything: database, objects, secrets, caches."""
    isolation: str = "auto"
    """`docker`, `bwrap`, `process`, or `auto`: docker where an engine answers, else bwrap, never `process`."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    """Worker processes that `nanogrid up` starts."""
    worker_capacity: At1 = 16
    """Invocations that one worker runs at a time."""
    spares: Annotated[int, msgspec.Meta(ge=0, le=100)] = 2
    """Booted sandboxes kept ready for each runtime family in use, on each worker."""
    max_sandboxes: At1 = 64
    """Loaded sandboxes that one worker keeps; beyond it the least recently used idle one goes."""
    freeze_after_s: At0 = 1.0
    """Idle seconds after which a warm sandbox is frozen."""
    lease_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """How long a worker's right to an attempt lasts without renewal; renewed at a third of it."""
    sync_wait_s: Annotated[float, msgspec.Meta(gt=0)] = 55.0
    """How long a synchronous call waits by default before it is answered 202."""
    drain_s: At0 = 30.0
    """How long running invocations may go on at shutdown before they are handed back to the queue."""
    cancel_grace_s: At0 = 3.0
    """Seconds between SIGTERM and SIGKILL when an invocation is cancelled or times out."""
    state_ttl_s: At0 = 86400.0
    """How long a record is kept after its terminal state."""
    base_image: str = "debian:bookworm-slim"
    """The image that sandbox images are built from."""
    max_event_mb: At1 = 32
    """Largest event accepted, in MiB."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`."""


def load(
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Reads the settings.

    Args:
        overrides: values that beat everything (the command line); None values are left out.
        environ: the environment, `os.environ` by default.
        file: a TOML file with a `[grid]` table.

    Raises:
        ConfigError: naming every unknown key and wrong value.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    known = set(Settings.__struct_fields__)
    values: dict[str, Any] = {}
    if file is not None:
        try:
            table = tomllib.loads(file.read_text()).get("grid", {})
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"settings file {file}: {error}") from error
        problems += [f"{key}: no such setting (in {file})" for key in table if key not in known]
        values.update({key: value for key, value in table.items() if key in known})
    for name, text in environ.items():
        if name.startswith(PREFIX) and name not in NOT_SETTINGS:
            key = name[len(PREFIX) :].lower()
            if key in known:
                values[key] = text
            else:
                problems.append(f"{name}: no such setting")
    values.update({key: value for key, value in (overrides or {}).items() if value is not None})
    for key in list(values):
        kind = Settings.__annotations__[key]
        try:
            msgspec.convert({key: values[key]}, Settings, strict=False)
        except msgspec.ValidationError as error:
            problems.append(f"{key} = {values[key]!r}: {error} ({kind})")
    if problems:
        raise ConfigError("the settings are wrong:\n  " + "\n  ".join(problems))
    return msgspec.convert(values, Settings, strict=False)
