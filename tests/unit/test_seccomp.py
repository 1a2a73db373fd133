"""The system call filter, run by a small BPF interpreter."""

from __future__ import annotations

import errno
import struct

import pytest

from nanogrid.sandbox import seccomp

EPERM = seccomp.fail(errno.EPERM)
ENOSYS = seccomp.fail(errno.ENOSYS)


def verdict(machine: str, name_or_number: str | int, *args: int, arch: int | None = None) -> int:
    """What the filter of `machine` answers to a call."""
    number = seccomp.numbers(machine)[name_or_number] if isinstance(name_or_number, str) else name_or_number
    arguments = [*args, *[0] * (6 - len(args))]
    data = struct.pack("<IIQ6Q", number, seccomp.AUDIT_ARCH[machine] if arch is None else arch, 0, *arguments)
    code = list(struct.iter_unpack("=HBBI", seccomp.bpf(machine)))
    at, accumulator = 0, 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == seccomp.RET:
            return int(k)
        if op == seccomp.LOAD:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif op == seccomp.AND:
            accumulator &= k
        else:
            hit = {
                seccomp.JEQ: accumulator == k,
                seccomp.JGE: accumulator >= k,
                seccomp.JSET: bool(accumulator & k),
            }[op]
            at += yes if hit else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_exactly_the_table_is_allowed(machine: str) -> None:
    calls = seccomp.numbers(machine)
    allowed = {number for name, number in calls.items() if name not in seccomp.SPECIAL}
    special = {calls[name] for name in seccomp.SPECIAL}
    for number in range(seccomp.NEWEST + 1):
        if number not in special:
            assert (verdict(machine, number) == seccomp.ALLOW) == (number in allowed), number
    assert verdict(machine, seccomp.NEWEST + 1) == ENOSYS
    assert verdict(machine, 0x40000000) == ENOSYS
    assert verdict(machine, "read", arch=0x40000003) == seccomp.KILL


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_arguments_decide(machine: str) -> None:
    assert verdict(machine, "clone", 0x3D0F00) == seccomp.ALLOW
    assert verdict(machine, "clone", 0x10000000 | 17) == EPERM
    assert verdict(machine, "clone3") == ENOSYS
    for family in range(48):
        for kind in range(12):
            wanted = family in seccomp.FAMILIES and kind in seccomp.SOCKET_TYPES
            assert (verdict(machine, "socket", family, kind | 0x80800) == seccomp.ALLOW) == wanted
    assert verdict(machine, "personality", 0xFFFFFFFF) == seccomp.ALLOW
    assert verdict(machine, "personality", 0x40000) == EPERM
    assert verdict(machine, "ioctl", 0, 0x5401) == seccomp.ALLOW
    assert verdict(machine, "ioctl", 0, 0x5412) == EPERM


def test_the_docker_profile_has_the_same_names() -> None:
    profile = seccomp.docker_profile()
    names = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert names == {entry.split(":")[0] for entry in seccomp.TABLE.split()}
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
