"""Functions, versions and aliases, and the checks that a configuration must pass."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from nanogrid.errors import InvalidRequest
from nanogrid.model.runtimes import RUNTIMES, canonical_runtime

NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}")
ENV_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}")
# Names through which an environment variable would run code in, or redirect, the runtime itself.
ENV_RESERVED: Final = frozenset(
    [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "NODE_OPTIONS",
        "NODE_PATH",
        "BASH_ENV",
        "ENV",
        "PATH",
    ]
)

Positive = Annotated[int, msgspec.Meta(ge=1)]


class FunctionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What a user may set of a function (`nanogrid.toml` or the config part of a deploy)."""

    name: str
    runtime: str
    handler: str = ""
    memory_mb: Annotated[int, msgspec.Meta(ge=16, le=1 << 20)] = 256
    cpus: Annotated[float, msgspec.Meta(gt=0, le=256)] = 1.0
    pids: Annotated[int, msgspec.Meta(ge=16, le=32768)] = 128
    tmp_mb: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 64
    output_mb: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    idle_timeout_s: Annotated[float, msgspec.Meta(ge=0)] = 600.0
    env: dict[str, str] = {}
    secrets: list[str] = []
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 2
    concurrency: Positive | None = None
    warm: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    network: str = "none"
    schedule: str | None = None
    url: bool = False
    description: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable code and config. `code_key` names the built zip on the object store."""

    function: str
    number: int
    config: FunctionConfig
    code_key: str
    code_sha256: str
    code_size: int
    created_at: float
    """Seconds since the epoch."""

    @property
    def label(self) -> str:
        """`name:number`, unique in the grid."""
        return f"{self.function}:{self.number}"


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """A named pointer to a version; `weights` sends a share (0..1) of the calls to another one."""

    version: int
    weights: dict[str, float] = {}


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """The newest revision of a function: its versions (by number as text) and aliases."""

    name: str
    revision: int
    versions: dict[str, Version]
    latest: int
    """The version that `$LATEST` means; a rollback moves it back."""
    aliases: dict[str, Alias] = {}
    created_at: float = 0.0
    updated_at: float = 0.0
    deleted: bool = False


def check_name(name: str, what: str = "function name") -> str:
    """Returns `name`, or raises InvalidRequest that says what a name may look like."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name[:80]!r} is not a {what}: use 1 to 64 letters, digits, '-' or '_', starting with a letter or digit"
        )
    return name


def check_config(config: FunctionConfig) -> FunctionConfig:
    """Checks what types cannot say; returns the config with its runtime in canonical form.

    Raises:
        InvalidRequest: naming the field and what it may be.
    """
    check_name(config.name)
    runtime = canonical_runtime(config.runtime)
    if runtime is None:
        raise InvalidRequest(f"unknown runtime {config.runtime!r}: use one of {', '.join(sorted(RUNTIMES))}")
    for key in config.env:
        if not ENV_NAME.fullmatch(key):
            raise InvalidRequest(f"env: {key[:80]!r} is not a variable name: use letters, digits and '_'")
        if key in ENV_RESERVED or key.startswith(("NANOGRID_", "LD_")):
            raise InvalidRequest(f"env: {key} is reserved, because it would change the runtime itself")
    for key in config.secrets:
        check_name(key, "secret name")
    if config.network not in ("none", "host"):
        raise InvalidRequest(f"network: {config.network!r} is not known: use 'none' (the default) or 'host'")
    if config.schedule is not None:
        from croniter import croniter

        if not croniter.is_valid(config.schedule):
            raise InvalidRequest(f"schedule: {config.schedule!r} is not a cron expression, such as '*/5 * * * *'")
    handler = config.handler or RUNTIMES[runtime].default_handler
    if RUNTIMES[runtime].dotted_handler and not re.fullmatch(r"[\w./-]+\.\w+", handler):
        raise InvalidRequest(f"handler: {handler!r} must be module.function for runtime {runtime}")
    return msgspec.structs.replace(config, runtime=runtime, handler=handler)
