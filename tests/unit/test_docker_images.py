"""What the docker level asks of the engine: images, build context, container definition, cgroup files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from nanogrid.errors import SandboxFailed
from nanogrid.sandbox.base import Limits
from nanogrid.sandbox.docker_cgroup import ContainerCgroup
from nanogrid.sandbox.docker_config import boot_command, container_config, exit_reason
from nanogrid.sandbox.docker_images import build_arguments, build_context, image_tag

RUNTIMES = Path(__file__).resolve().parents[2] / "runtimes"
BASE = "debian:bookworm-slim"
FAMILIES = ("python3", "nodejs", "native")


@pytest.fixture
def family(tmp_path: Path) -> Path:
    folder = tmp_path / "python3"
    folder.mkdir()
    (folder / "Dockerfile").write_text("ARG BASE\nFROM $BASE\n")
    (folder / "bootstrap.py").write_text("print(1)\n")
    return folder


def test_the_tag_follows_content_mode_and_base_but_not_caches(family: Path) -> None:
    runtimes = family.parent
    first = image_tag("python3", runtimes, BASE)
    assert first.startswith("nanogrid/python3:")
    (family / "__pycache__").mkdir()
    (family / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert image_tag("python3", runtimes, BASE) == first
    seen = {first, image_tag("python3", runtimes, "debian:trixie-slim")}
    (family / "bootstrap.py").chmod(0o755)
    seen.add(image_tag("python3", runtimes, BASE))
    (family / "bootstrap.py").write_text("print(2)\n")
    seen.add(image_tag("python3", runtimes, BASE))
    assert len(seen) == 4


def test_the_build_context_is_the_folder_and_repeats_byte_for_byte(family: Path) -> None:
    context = build_context(family)
    with tarfile.open(fileobj=io.BytesIO(context)) as tar:
        assert tar.getnames() == ["Dockerfile", "bootstrap.py"]
    (family / "bootstrap.py").touch()
    assert build_context(family) == context


def test_only_the_base_and_proxies_reach_a_build() -> None:
    environ = {"HTTP_PROXY": "http://proxy", "AWS_SECRET_ACCESS_KEY": "x", "no_proxy": ""}
    assert build_arguments(BASE, environ) == {"BASE": BASE, "http_proxy": "http://proxy"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_dockerfile_on_the_base_and_sets_no_environment(family: str) -> None:
    lines = (RUNTIMES / family / "Dockerfile").read_text().splitlines()
    assert f"ARG BASE={BASE}" in lines
    assert "FROM $BASE" in lines
    assert not [line for line in lines if line.startswith(("ENV ", "VOLUME ", "EXPOSE "))]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_boots_from_its_own_image(family: str) -> None:
    assert boot_command(family, RUNTIMES)[-1].startswith("/var/runtime/bootstrap.")


def test_a_family_without_bootstrap_is_named() -> None:
    with pytest.raises(SandboxFailed, match="fortran"):
        boot_command("fortran", RUNTIMES)


def test_a_container_is_locked_down() -> None:
    limits = Limits(memory_mb=128, cpus=0.5, pids=32, tmp_mb=16)
    config = container_config("i", ["b"], Path("/r/sb/x"), Path("/r/sb/x/code"), limits, "grid")
    host = config["HostConfig"]
    assert (config["User"], host["CapDrop"], host["Privileged"]) == ("65534:65534", ["ALL"], False)
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["IpcMode"]) == ("none", True, "private")
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (128 << 20, 128 << 20, 32)
    assert host["NanoCpus"] == 500_000_000
    assert "no-new-privileges" in host["SecurityOpt"]
    assert any(option.startswith('seccomp={"defaultAction"') for option in host["SecurityOpt"])
    assert all(mount["ReadOnly"] for mount in host["Mounts"])
    assert {"nosuid", "nodev", "size=16m"} <= set(host["Tmpfs"]["/tmp"].split(","))
    assert host["LogConfig"] == {"Type": "none"}
    assert not [name for name in ("CapAdd", "Devices", "Binds", "PidMode", "UsernsMode") if host.get(name)]


@pytest.mark.parametrize(
    ("status", "out_of_memory", "reason"),
    [
        (0, False, "exit status 0"),
        (3, False, "exit status 3"),
        (137, False, "signal 9"),
        (137, True, "out of memory"),
    ],
)
def test_the_end_of_a_container_in_words(status: int, out_of_memory: bool, reason: str) -> None:
    assert exit_reason(status, out_of_memory) == reason


def fake_v1(root: Path, proc: Path) -> None:
    (proc / "7").mkdir(parents=True)
    names = ("freezer", "memory", "cpu,cpuacct", "pids")
    (proc / "7" / "cgroup").write_text("".join(f"{n}:{name}:/docker/c0\n" for n, name in enumerate(names, 1)))
    files = {
        "freezer/docker/c0/freezer.state": "THAWED",
        "memory/docker/c0/memory.limit_in_bytes": str(256 << 20),
        "memory/docker/c0/memory.memsw.limit_in_bytes": str(256 << 20),
        "memory/docker/c0/memory.usage_in_bytes": str(8 << 20),
        "memory/docker/c0/memory.max_usage_in_bytes": str(16 << 20),
        "memory/docker/c0/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        "cpuacct/docker/c0/cpuacct.usage": "5000000",
        "cpu/docker/c0/cpu.cfs_quota_us": "-1",
        "pids/docker/c0/pids.max": "max",
    }
    write_all(root, files)


def fake_v2(root: Path, proc: Path) -> None:
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "cgroup").write_text("0::/system.slice/docker-c0.scope\n")
    files = {"cgroup.controllers": "cpu memory pids"}
    scope = {
        "cgroup.freeze": "0",
        "memory.max": str(256 << 20),
        "memory.swap.max": "0",
        "memory.current": str(8 << 20),
        "memory.peak": str(16 << 20),
        "memory.events": "low 0\noom 1\noom_kill 1\n",
        "cpu.stat": "usage_usec 5000\nuser_usec 1\n",
        "cpu.max": "max 100000",
        "pids.max": "max",
    }
    write_all(root, files | {f"system.slice/docker-c0.scope/{name}": text for name, text in scope.items()})


def write_all(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V1_AFTER = {
    "freezer/docker/c0/freezer.state": "FROZEN",
    "memory/docker/c0/memory.limit_in_bytes": str(512 << 20),
    "memory/docker/c0/memory.memsw.limit_in_bytes": str(512 << 20),
    "cpu/docker/c0/cpu.cfs_quota_us": "50000",
    "pids/docker/c0/pids.max": "32",
}
V2_AFTER = {
    "system.slice/docker-c0.scope/cgroup.freeze": "1",
    "system.slice/docker-c0.scope/memory.max": str(512 << 20),
    "system.slice/docker-c0.scope/cpu.max": "50000 100000",
    "system.slice/docker-c0.scope/pids.max": "32",
}


@pytest.mark.parametrize(("fake", "after"), [(fake_v1, V1_AFTER), (fake_v2, V2_AFTER)], ids=["v1", "v2"])
def test_both_versions_of_cgroups_are_read_and_written(fake, after, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    fake(root, proc)
    cgroup = ContainerCgroup.find(7, "c0", root, proc)
    assert cgroup is not None
    assert cgroup.read() == (5.0, 16.0, 8.0, True)
    cgroup.limit(Limits(memory_mb=512, cpus=0.5, pids=32))
    cgroup.freeze()
    assert {name: (root / name).read_text() for name in after} == after


def test_a_process_that_is_not_the_containers_is_left_alone(tmp_path: Path) -> None:
    fake_v2(tmp_path / "cgroup", tmp_path / "proc")
    assert ContainerCgroup.find(7, "c1", tmp_path / "cgroup", tmp_path / "proc") is None
    assert ContainerCgroup.find(8, "c0", tmp_path / "cgroup", tmp_path / "proc") is None
