"""What a bwrap sandbox sees of the file system: the system's programs, nothing of the host's data.

Everything is read-only but /tmp and /dev/shm, which are tmpfs of a set size (a tmpfs without one may take
half the memory of the machine).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from nanogrid.sandbox.base import Limits
from nanogrid.sandbox.channel import CODE_INSIDE, INSIDE, RUNTIME_INSIDE

SYSTEM: Final = ("/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
ETC: Final = (
    "ld.so.cache",
    "ssl",
    "pki",
    "ca-certificates",
    "localtime",
    "alternatives",
    "nsswitch.conf",
    "mime.types",
)
NETWORK_ETC: Final = ("resolv.conf", "hosts", "services", "protocols")
USER: Final = 65534
ACCOUNTS: Final = "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/tmp:/sbin/nologin\n"
GROUPS: Final = "root:x:0:\nnogroup:x:65534:\n"
SHM_MB: Final = 16


def system_mounts(network: bool) -> list[str]:
    """bwrap arguments for the programs and libraries of the host."""
    args = [*folders(Path("/etc")), "--ro-bind", "/usr", "/usr"]
    for name in SYSTEM:
        path = Path(name)
        if path.is_symlink():
            args += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            args += ["--ro-bind", name, name]
    for entry in ETC + (NETWORK_ETC if network else ()):
        args += ["--ro-bind-try", f"/etc/{entry}", f"/etc/{entry}"]
    return args


def program_mounts(program: Path) -> list[str]:
    """bwrap arguments that make an interpreter outside of /usr visible at its own path.

    Its whole installation (`<prefix>/bin/<program>` with a `<prefix>/lib`) comes along, but never a home
    folder or the root, for which a `bin` in it would speak; then it is the file alone.
    """
    if program.is_relative_to("/usr"):
        return []
    prefix = program.parent.parent
    wide = prefix in (Path("/"), Path.home(), *Path.home().parents)
    shown = prefix if program.parent.name == "bin" and (prefix / "lib").is_dir() and not wide else program
    return [*folders(shown.parent), "--ro-bind", str(shown), str(shown)]


def folders(path: Path) -> list[str]:
    """bwrap arguments for an empty folder that all may pass; by itself bwrap makes private ones on the way
    to a source that is private on the host (such as a Python in /root)."""
    return [
        argument
        for folder in (*reversed(path.parents), path)
        if folder != Path("/")
        for argument in ("--perms", "0755", "--dir", str(folder))
    ]


def own_mounts(folder: Path, runtime: Path, code: Path | None) -> list[str]:
    """bwrap arguments for the code, the bootstrap and the sandbox's socket and log pipe."""
    return [
        *folders(Path(CODE_INSIDE).parent),
        *folders(Path(INSIDE)),
        *("--ro-bind", str(code or folder / "code"), CODE_INSIDE),
        *("--ro-bind", str(runtime), RUNTIME_INSIDE),
        *("--ro-bind", str(folder / "s"), f"{INSIDE}/s"),
        *("--ro-bind", str(folder / "log"), f"{INSIDE}/log"),
    ]


def scratch_mounts(limits: Limits) -> list[str]:
    """bwrap arguments for /proc, /dev, /tmp and the closing of all the rest; they must come last."""
    return [
        *("--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(SHM_MB << 20), "--tmpfs", "/dev/shm"),
        *("--perms", "1777", "--size", str(limits.tmp_mb << 20), "--tmpfs", "/tmp"),
        *("--remount-ro", "/dev", "--remount-ro", "/"),
    ]


def memfd(name: str, content: bytes) -> int:
    """An unnamed file with this content, read from the start, for handing to bwrap by number."""
    fd = os.memfd_create(name)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
