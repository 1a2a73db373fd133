"""Which system calls user code may make: one table, compiled to BPF for bwrap and to JSON for Docker.

An allow-list: what Python, Node.js, Go and C++ programs use, less what reaches past the sandbox. Anything
else fails with EPERM, and numbers newer than the table with ENOSYS, so that libraries which probe for new
calls fall back. Left out on purpose: new namespaces (unshare, setns, clone with CLONE_NEW*), mount and
pivot_root, ptrace, process_vm_*, kcmp, io_uring_*, bpf, perf_event_open, the key rings, userfaultfd, modules,
clocks, quotas, swap, reboot, handles (open_by_handle_at). clone3 answers ENOSYS because a filter cannot
look at the struct that holds its flags; the C libraries then use clone.

Numbers: Linux 6.x asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import errno
import platform
from struct import pack
from typing import Any, Final

# name:x86_64:aarch64, "-" where the architecture does not have it.
TABLE: Final = """
read:0:63 write:1:64 open:2:- close:3:57 stat:4:- fstat:5:80 lstat:6:- poll:7:- lseek:8:62 mmap:9:222
mprotect:10:226 munmap:11:215 brk:12:214 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139
ioctl:16:29 pread64:17:67 pwrite64:18:68 readv:19:65 writev:20:66 access:21:- pipe:22:- select:23:-
sched_yield:24:124 mremap:25:216 msync:26:227 mincore:27:232 madvise:28:233 shmget:29:194 shmat:30:196
shmctl:31:195 dup:32:23 dup2:33:- pause:34:- nanosleep:35:101 getitimer:36:102 alarm:37:- setitimer:38:103
getpid:39:172 sendfile:40:71 socket:41:198 connect:42:203 accept:43:202 sendto:44:206 recvfrom:45:207
sendmsg:46:211 recvmsg:47:212 shutdown:48:210 bind:49:200 listen:50:201 getsockname:51:204
getpeername:52:205 socketpair:53:199 setsockopt:54:208 getsockopt:55:209 clone:56:220 fork:57:- vfork:58:-
execve:59:221 exit:60:93 wait4:61:260 kill:62:129 uname:63:160 semget:64:190 semop:65:193 semctl:66:191
shmdt:67:197 msgget:68:186 msgsnd:69:189 msgrcv:70:188 msgctl:71:187 fcntl:72:25 flock:73:32 fsync:74:82
fdatasync:75:83 truncate:76:45 ftruncate:77:46 getdents:78:- getcwd:79:17 chdir:80:49 fchdir:81:50
rename:82:- mkdir:83:- rmdir:84:- creat:85:- link:86:- unlink:87:- symlink:88:- readlink:89:- chmod:90:-
fchmod:91:52 chown:92:- fchown:93:55 lchown:94:- umask:95:166 gettimeofday:96:169 getrlimit:97:163
getrusage:98:165 sysinfo:99:179 times:100:153 getuid:102:174 getgid:104:176 setuid:105:146 setgid:106:144
geteuid:107:175 getegid:108:177 setpgid:109:154 getppid:110:173 getpgrp:111:- setsid:112:157
setreuid:113:145 setregid:114:143 getgroups:115:158 setgroups:116:159 setresuid:117:147 getresuid:118:148
setresgid:119:149 getresgid:120:150 getpgid:121:155 setfsuid:122:151 setfsgid:123:152 getsid:124:156
capget:125:90 capset:126:91 rt_sigpending:127:136 rt_sigtimedwait:128:137 rt_sigqueueinfo:129:138
rt_sigsuspend:130:133 sigaltstack:131:132 utime:132:- mknod:133:- personality:135:92 statfs:137:43
fstatfs:138:44 getpriority:140:141 setpriority:141:140 sched_setparam:142:118 sched_getparam:143:121
sched_setscheduler:144:119 sched_getscheduler:145:120 sched_get_priority_max:146:125
sched_get_priority_min:147:126 sched_rr_get_interval:148:127 mlock:149:228 munlock:150:229
mlockall:151:230 munlockall:152:231 prctl:157:167 arch_prctl:158:- setrlimit:160:164 sync:162:81
gettid:186:178 readahead:187:213 setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7 getxattr:191:8
lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12 flistxattr:196:13 removexattr:197:14
lremovexattr:198:15 fremovexattr:199:16 tkill:200:130 time:201:- futex:202:98 sched_setaffinity:203:122
sched_getaffinity:204:123 io_setup:206:0 io_destroy:207:1 io_getevents:208:4 io_submit:209:2
io_cancel:210:3 epoll_create:213:- remap_file_pages:216:234 getdents64:217:61 set_tid_address:218:96
restart_syscall:219:128 semtimedop:220:192 fadvise64:221:223 timer_create:222:107 timer_settime:223:110
timer_gettime:224:108 timer_getoverrun:225:109 timer_delete:226:111 clock_gettime:228:113
clock_getres:229:114 clock_nanosleep:230:115 exit_group:231:94 epoll_wait:232:- epoll_ctl:233:21
tgkill:234:131 utimes:235:- mq_open:240:180 mq_unlink:241:181 mq_timedsend:242:182 mq_timedreceive:243:183
mq_notify:244:184 mq_getsetattr:245:185 waitid:247:95 inotify_init:253:- inotify_add_watch:254:27
inotify_rm_watch:255:28 openat:257:56 mkdirat:258:34 mknodat:259:33 fchownat:260:54 futimesat:261:-
newfstatat:262:79 unlinkat:263:35 renameat:264:38 linkat:265:37 symlinkat:266:36 readlinkat:267:78
fchmodat:268:53 faccessat:269:48 pselect6:270:72 ppoll:271:73 set_robust_list:273:99
get_robust_list:274:100 splice:275:76 tee:276:77 sync_file_range:277:84 vmsplice:278:75 utimensat:280:88
epoll_pwait:281:22 signalfd:282:- timerfd_create:283:85 eventfd:284:- fallocate:285:47
timerfd_settime:286:86 timerfd_gettime:287:87 accept4:288:242 signalfd4:289:74 eventfd2:290:19
epoll_create1:291:20 dup3:292:24 pipe2:293:59 inotify_init1:294:26 preadv:295:69 pwritev:296:70
rt_tgsigqueueinfo:297:240 recvmmsg:299:243 prlimit64:302:261 syncfs:306:267 sendmmsg:307:269
getcpu:309:168 sched_setattr:314:274 sched_getattr:315:275 renameat2:316:276 seccomp:317:277
getrandom:318:278 memfd_create:319:279 membarrier:324:283 mlock2:325:284 copy_file_range:326:285
preadv2:327:286 pwritev2:328:287 pkey_mprotect:329:288 pkey_alloc:330:289 pkey_free:331:290 statx:332:291
rseq:334:293 pidfd_send_signal:424:424 pidfd_open:434:434 clone3:435:435 close_range:436:436
openat2:437:437 faccessat2:439:439 epoll_pwait2:441:441 landlock_create_ruleset:444:444
landlock_add_rule:445:445 landlock_restrict_self:446:446 process_mrelease:448:448 futex_waitv:449:449
cachestat:451:451 fchmodat2:452:452 map_shadow_stack:453:453 futex_wake:454:454 futex_wait:455:455
futex_requeue:456:456
"""
CLONE_NEW: Final = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
FAMILIES: Final = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6: not netlink, packet, vsock, alg, bluetooth."""
SOCKET_TYPES: Final = (1, 2, 5)
"""SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET: not raw."""
PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, with 32-bit names, and the query; not ADDR_NO_RANDOMIZE or READ_IMPLIES_EXEC."""
FORBIDDEN_IOCTLS: Final = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: they type into the terminal of whoever started the sandbox."""
SPECIAL: Final = frozenset({"clone", "clone3", "socket", "personality", "ioctl"})
AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEWEST: Final = 467
"""The highest number that the decisions above cover."""

# Classic BPF: BPF_LD|W|ABS, BPF_JMP|JEQ/JGE/JSET|K, BPF_ALU|AND|K, BPF_RET|K (linux/bpf_common.h).
LOAD, JEQ, JGE, JSET, AND, RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NR, ARCH, ARGS = 0, 4, 16
"""Offsets in struct seccomp_data; argument i has its low half at ARGS + 8 * i on little endian."""

Instruction = tuple[int, int, int, int]


def numbers(machine: str) -> dict[str, int]:
    """The allowed calls of an architecture and their numbers."""
    column = {"x86_64": 1, "aarch64": 2}[machine]
    rows = (entry.split(":") for entry in TABLE.split())
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def ranges(values: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as ranges, both ends included."""
    found: list[tuple[int, int]] = []
    for value in sorted(values):
        if found and found[-1][1] == value - 1:
            found[-1] = (found[-1][0], value)
        else:
            found.append((value, value))
    return found


def fail(number: int) -> int:
    """The return value that makes a call fail with this errno."""
    return ERRNO | number


def _when(number: int, body: list[Instruction]) -> list[Instruction]:
    """`body`, which must return, for calls with this number."""
    return [(JEQ, 0, len(body), number), *body]


def _one_of(argument: int, values: tuple[int, ...], mask: int, otherwise: list[Instruction]) -> list[Instruction]:
    """Goes on behind the returned code when the masked argument is one of `values`, else runs `otherwise`."""
    code: list[Instruction] = [(LOAD, 0, 0, ARGS + 8 * argument), (AND, 0, 0, mask)]
    for left, value in zip(range(len(values), 0, -1), values, strict=True):
        code.append((JEQ, left - 1 + len(otherwise), 0, value))
    return code + otherwise


def _special(calls: dict[str, int]) -> list[Instruction]:
    denied: list[Instruction] = [(RET, 0, 0, fail(errno.EPERM))]
    allowed: list[Instruction] = [(RET, 0, 0, ALLOW)]
    clone: list[Instruction] = [(LOAD, 0, 0, ARGS), (JSET, 0, 1, CLONE_NEW), *denied, *allowed]
    opening = _one_of(0, FAMILIES, 0xFFFFFFFF, denied) + _one_of(1, SOCKET_TYPES, 0xF, denied) + allowed
    persona = _one_of(0, PERSONALITIES, 0xFFFFFFFF, denied) + allowed
    control = _one_of(1, FORBIDDEN_IOCTLS, 0xFFFFFFFF, allowed) + denied
    missing: list[Instruction] = [(RET, 0, 0, fail(errno.ENOSYS))]
    return [
        *_when(calls["clone"], clone),
        *_when(calls["clone3"], missing),
        *_when(calls["socket"], opening),
        *_when(calls["personality"], persona),
        *_when(calls["ioctl"], control),
    ]


def bpf(machine: str = "") -> bytes:
    """The filter as an array of struct sock_filter, for `bwrap --seccomp FD`.

    Args:
        machine: x86_64 or aarch64; empty means this machine.

    Raises:
        KeyError: another architecture.
    """
    machine = machine or platform.machine()
    calls = numbers(machine)
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCH),
        (JEQ, 1, 0, AUDIT_ARCH[machine]),
        (RET, 0, 0, KILL),
        (LOAD, 0, 0, NR),
        *_special(calls),
    ]
    for first, last in ranges([number for name, number in calls.items() if name not in SPECIAL]):
        # Below the range: nothing later can match, because the ranges are in order.
        code += [
            (JGE, 1, 0, first),
            (RET, 0, 0, fail(errno.EPERM)),
            (JGE, 1, 0, last + 1),
            (RET, 0, 0, ALLOW),
        ]
    # Numbers of the x32 ABI are above NEWEST as well and do not exist for us.
    code += [(JGE, 1, 0, NEWEST + 1), (RET, 0, 0, fail(errno.EPERM)), (RET, 0, 0, fail(errno.ENOSYS))]
    return b"".join(pack("=HBBI", *instruction) for instruction in code)


def docker_profile() -> dict[str, Any]:
    """The same decisions as a seccomp profile for Docker (moby's JSON format).

    ioctl is allowed in full: a container of ours never has a terminal that TIOCSTI could type into.
    """

    def rule(names: list[str], *args: dict[str, Any]) -> dict[str, Any]:
        return {"names": names, "action": "SCMP_ACT_ALLOW", "args": list(args)}

    def equal(index: int, value: int) -> dict[str, Any]:
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}

    def masked(index: int, mask: int, value: int) -> dict[str, Any]:
        return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}

    names = sorted({entry.split(":")[0] for entry in TABLE.split()} - SPECIAL)
    sockets = [rule(["socket"], equal(0, family), masked(1, 0xF, kind)) for family in FAMILIES for kind in SOCKET_TYPES]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": [
            rule(names),
            rule(["clone"], masked(0, CLONE_NEW, 0)),
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS, "args": []},
            *sockets,
            *(rule(["personality"], equal(0, value)) for value in PERSONALITIES),
            rule(["ioctl"]),
        ],
    }
