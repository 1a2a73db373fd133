"""Control groups against folders that look like the kernel's; real ones are in the contract suite."""

from __future__ import annotations

from pathlib import Path

from nanogrid.sandbox.base import Limits
from nanogrid.sandbox.cgroup import GroupV2, HierarchyV1, HierarchyV2, find_hierarchy


def test_version_2_writes_limits_and_reads_meters(tmp_path: Path) -> None:
    own = tmp_path / "worker"
    (own / "nanogrid").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (own / "cgroup.controllers").write_text("cpu memory pids")
    for folder in (own, own / "nanogrid"):
        (folder / "cgroup.subtree_control").write_text("cpu memory pids")
    hierarchy = find_hierarchy(tmp_path, "0::/worker\n")
    assert isinstance(hierarchy, HierarchyV2)

    folder = own / "nanogrid" / "a"
    folder.mkdir()
    (folder / "cpu.stat").write_text("usage_usec 2500\nuser_usec 1\n")
    (folder / "memory.current").write_text("1048576\n")
    (folder / "memory.peak").write_text("2097152\n")
    (folder / "memory.events").write_text("oom 1\noom_kill 1\n")
    (folder / "cgroup.freeze").write_text("0")
    group = hierarchy.create("a")
    assert isinstance(group, GroupV2)
    assert group.joins == [folder / "cgroup.procs"]
    group.limit(Limits(memory_mb=64, cpus=0.5, pids=9))
    assert (folder / "memory.max").read_text() == str(64 << 20)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "pids.max").read_text() == "9"
    assert (folder / "cpu.max").read_text() == "50000 100000"
    assert group.read() == (2.5, 2.0, 1.0, True)
    group.freeze()
    assert (folder / "cgroup.freeze").read_text() == "1"
    assert hierarchy.leftovers() == ["a"]


def test_version_1_stays_below_the_own_group_of_each_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "memory" / "mine").mkdir(parents=True)
    (tmp_path / "pids").mkdir()
    (tmp_path / "freezer").mkdir()
    hierarchy = find_hierarchy(tmp_path, "3:memory:/mine\n2:pids:/\n1:freezer:/\n0::/\n")
    assert isinstance(hierarchy, HierarchyV1)
    group = hierarchy.create("a")
    assert tmp_path / "memory" / "mine" / "nanogrid" / "a" / "tasks" in group.joins
    assert group.remove()


def test_no_hierarchy_without_the_controllers_or_the_right(tmp_path: Path) -> None:
    assert find_hierarchy(tmp_path, "1:cpu:/\n") is None
    assert find_hierarchy(tmp_path / "absent", "1:memory:/\n2:pids:/\n3:freezer:/\n") is None
