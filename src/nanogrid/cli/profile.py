"""Which grid the command line talks to: the environment, else the profile that `nanogrid up` wrote."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nanogrid.cli.errors import CliError

NO_PROFILE = (
    "no grid is known here: start one with `nanogrid up`, "
    "or set NANOGRID_URL and NANOGRID_API_KEY to those of a running grid"
)


class Profile(NamedTuple):
    """How to reach a grid. `data` is its folder when it is a grid of this machine."""

    url: str
    key: str
    data: str | None = None


def path(environ: Mapping[str, str] | None = None) -> Path:
    """Where the profile lies: below XDG_CONFIG_HOME, by default ~/.config."""
    environ = os.environ if environ is None else environ
    home = environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "nanogrid" / "profile.json"


def write(url: str, key: str, data: Path | str | None = None) -> Path:
    """Replaces the profile in one step; only its owner can read it. Returns where it is.

    Raises:
        OSError: the folder cannot be written.
    """
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A temporary file is 0600 from its first byte, and the rename leaves no moment without a profile.
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".profile-")
    try:
        with os.fdopen(handle, "w") as out:
            json.dump({"url": url, "key": key, "data": None if data is None else str(data)}, out, indent=2)
            out.write("\n")
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return file


def stored() -> Profile | None:
    """The profile on disk, or None when there is none.

    Raises:
        CliError: the file is damaged.
    """
    file = path()
    try:
        saved = json.loads(file.read_text())
        return Profile(str(saved["url"]), str(saved["key"]), saved.get("data"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CliError(f"{file} is damaged: delete it, and `nanogrid up` writes a new one") from error


def find(environ: Mapping[str, str] | None = None) -> Profile:
    """The grid to talk to: NANOGRID_URL and NANOGRID_API_KEY, each over what the profile says.

    The profile's key is never sent to another address than the profile's own.

    Raises:
        CliError: neither says where the grid is, or there is no key for it.
    """
    environ = os.environ if environ is None else environ
    url, key = environ.get("NANOGRID_URL"), environ.get("NANOGRID_API_KEY")
    if url and key:
        return Profile(url.rstrip("/"), key)
    saved = stored()
    if not url:
        if saved is None:
            raise CliError(NO_PROFILE)
        return Profile(saved.url, key or saved.key, saved.data)
    url = url.rstrip("/")
    if saved is not None and saved.url == url:
        return saved
    raise CliError(f"NANOGRID_URL is {url}, and there is no key for it: set NANOGRID_API_KEY")
