"""The system calls that a sandbox may make: one table, as JSON for Docker and as BPF for bubblewrap; pure.

Everything that is not listed is refused: mounting, tracing other processes, key rings, BPF, performance counters, user
namespaces, and all future system calls. A refused call returns an error and kills nothing, so programs can fall back.
Some calls are allowed depending on their arguments (`_JUDGED`), and some fail like in an old kernel (`_ABSENT`). All
calls of 32-bit programs are refused.

`docker_profile` returns the Engine API's security option `seccomp`. `bpf_filter` returns what bubblewrap reads: a
classic BPF program over `struct seccomp_data` (linux/seccomp.h), 8-byte `struct sock_filter` instructions.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from errno import ENOSYS, EPERM
from json import dumps
from typing import Any

MACHINES = ("x86_64", "aarch64")
"""Values of `platform.machine()`, in the order of the numbers in the tables."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_DOCKER_ARCH = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

_ALLOWED = """
accept 43 202, accept4 288 242, access 21 -, adjtimex 159 171, alarm 37 -, arch_prctl 158 -, bind 49 200, brk 12 214,
cachestat 451 451, capget 125 90, capset 126 91, chdir 80 49, chmod 90 -, chown 92 -, clock_adjtime 305 266,
clock_getres 229 114, clock_gettime 228 113, clock_nanosleep 230 115, close 3 57, close_range 436 436, connect 42 203,
copy_file_range 326 285, creat 85 -, dup 32 23, dup2 33 -, dup3 292 24, epoll_create 213 -, epoll_create1 291 20,
epoll_ctl 233 21, epoll_pwait 281 22, epoll_pwait2 441 441, epoll_wait 232 -, eventfd 284 -, eventfd2 290 19,
execve 59 221, execveat 322 281, exit 60 93, exit_group 231 94, faccessat 269 48, faccessat2 439 439,
fadvise64 221 223, fallocate 285 47, fchdir 81 50, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, fchown 93 55,
fchownat 260 54, fcntl 72 25, fdatasync 75 83, fgetxattr 193 10, flistxattr 196 13, flock 73 32, fork 57 -,
fremovexattr 199 16, fsetxattr 190 7, fstat 5 80, fstatfs 138 44, fsync 74 82, ftruncate 77 46, futex 202 98,
futex_requeue 456 456, futex_wait 455 455, futex_waitv 449 449, futex_wake 454 454, futimesat 261 -,
get_mempolicy 239 236, get_robust_list 274 100, get_thread_area 211 -, getcpu 309 168, getcwd 79 17, getdents 78 -,
getdents64 217 61, getegid 108 177, geteuid 107 175, getgid 104 176, getgroups 115 158, getitimer 36 102,
getpeername 52 205, getpgid 121 155, getpgrp 111 -, getpid 39 172, getppid 110 173, getpriority 140 141,
getrandom 318 278, getresgid 120 150, getresuid 118 148, getrlimit 97 163, getrusage 98 165, getsid 124 156,
getsockname 51 204, getsockopt 55 209, gettid 186 178, gettimeofday 96 169, getuid 102 174, getxattr 191 8,
getxattrat 464 464, inotify_add_watch 254 27, inotify_init 253 -, inotify_init1 294 26, inotify_rm_watch 255 28,
ioprio_get 252 31, ioprio_set 251 30, kill 62 129, landlock_add_rule 445 445, landlock_create_ruleset 444 444,
landlock_restrict_self 446 446, lchown 94 -, lgetxattr 192 9, link 86 -, linkat 265 37, listen 50 201,
listmount 458 458, listxattr 194 11, listxattrat 465 465, llistxattr 195 12, lremovexattr 198 15, lseek 8 62,
lsetxattr 189 6, lstat 6 -, madvise 28 233, map_shadow_stack 453 453, membarrier 324 283, memfd_create 319 279,
mincore 27 232, mkdir 83 -, mkdirat 258 34, mknod 133 -, mknodat 259 33, mlock 149 228, mlock2 325 284,
mlockall 151 230, mmap 9 222, mprotect 10 226, mq_getsetattr 245 185, mq_notify 244 184, mq_open 240 180,
mq_timedreceive 243 183, mq_timedsend 242 182, mq_unlink 241 181, mremap 25 216, mseal 462 462, msgctl 71 187,
msgget 68 186, msgrcv 70 188, msgsnd 69 189, msync 26 227, munlock 150 229, munlockall 152 231, munmap 11 215,
nanosleep 35 101, newfstatat 262 79, open 2 -, openat 257 56, openat2 437 437, pause 34 -, pidfd_open 434 434,
pidfd_send_signal 424 424, pipe 22 -, pipe2 293 59, pkey_alloc 330 289, pkey_free 331 290, pkey_mprotect 329 288,
poll 7 -, ppoll 271 73, prctl 157 167, pread64 17 67, preadv 295 69, preadv2 327 286, prlimit64 302 261,
process_mrelease 448 448, pselect6 270 72, pwrite64 18 68, pwritev 296 70, pwritev2 328 287, read 0 63,
readahead 187 213, readlink 89 -, readlinkat 267 78, readv 19 65, recvfrom 45 207, recvmmsg 299 243, recvmsg 47 212,
remap_file_pages 216 234, removexattr 197 14, removexattrat 466 466, rename 82 -, renameat 264 38, renameat2 316 276,
restart_syscall 219 128, rmdir 84 -, rseq 334 293, rt_sigaction 13 134, rt_sigpending 127 136, rt_sigprocmask 14 135,
rt_sigqueueinfo 129 138, rt_sigreturn 15 139, rt_sigsuspend 130 133, rt_sigtimedwait 128 137,
rt_tgsigqueueinfo 297 240, sched_get_priority_max 146 125, sched_get_priority_min 147 126, sched_getaffinity 204 123,
sched_getattr 315 275, sched_getparam 143 121, sched_getscheduler 145 120, sched_rr_get_interval 148 127,
sched_setaffinity 203 122, sched_setattr 314 274, sched_setparam 142 118, sched_setscheduler 144 119,
sched_yield 24 124, seccomp 317 277, select 23 -, semctl 66 191, semget 64 190, semop 65 193, semtimedop 220 192,
sendfile 40 71, sendmmsg 307 269, sendmsg 46 211, sendto 44 206, set_robust_list 273 99, set_thread_area 205 -,
set_tid_address 218 96, setfsgid 123 152, setfsuid 122 151, setgid 106 144, setgroups 116 159, setitimer 38 103,
setpgid 109 154, setpriority 141 140, setregid 114 143, setresgid 119 149, setresuid 117 147, setreuid 113 145,
setrlimit 160 164, setsid 112 157, setsockopt 54 208, setuid 105 146, setxattr 188 5, setxattrat 463 463,
shmat 30 196, shmctl 31 195, shmdt 67 197, shmget 29 194, shutdown 48 210, sigaltstack 131 132, signalfd 282 -,
signalfd4 289 74, splice 275 76, stat 4 -, statfs 137 43, statmount 457 457, statx 332 291, symlink 88 -,
symlinkat 266 36, sync 162 81, sync_file_range 277 84, syncfs 306 267, sysinfo 99 179, tee 276 77, tgkill 234 131,
time 201 -, timer_create 222 107, timer_delete 226 111, timer_getoverrun 225 109, timer_gettime 224 108,
timer_settime 223 110, timerfd_create 283 85, timerfd_gettime 287 87, timerfd_settime 286 86, times 100 153,
tkill 200 130, truncate 76 45, umask 95 166, uname 63 160, unlink 87 -, unlinkat 263 35, utime 132 -,
utimensat 280 88, utimes 235 -, vfork 58 -, vmsplice 278 75, wait4 61 260, waitid 247 95, write 1 64, writev 20 66
"""
"""Name, number on x86-64, number on ARM64: allowed with any arguments."""

_ABSENT = """
clone3 435 435, io_cancel 210 3, io_destroy 207 1, io_getevents 208 4, io_pgetevents 333 292, io_setup 206 0,
io_submit 209 2, io_uring_enter 426 426, io_uring_register 427 427, io_uring_setup 425 425
"""
"""Fail with ENOSYS, so that programs use other calls.

The flags of clone3 are in memory, which a filter cannot read; the C library then uses clone. The contexts of io_setup
are limited for the whole machine, so one sandbox could use up all of them (`fs.aio-max-nr`).
"""

_JUDGED_NUMBERS = "clone 56 220, ioctl 16 29, personality 135 92, socket 41 198, socketpair 53 199"

_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_STREAM, _DATAGRAM, _RAW = 1, 2, 3
_SOCKET_TYPE = 0xF
"""The bits of a type that are not flags (SOCK_NONBLOCK, SOCK_CLOEXEC)."""
_INTERNET = {_STREAM: (0, 6), _DATAGRAM: (0, 1, 17, 58), _RAW: (1, 58)}
"""Protocols of internet sockets, by type: the type's default (0), ICMP, TCP, UDP and ICMPv6. Raw is for an old `ping`.

Other protocols and types make the host's kernel load modules; DCCP, for example, is the default of a type.
"""
_NETLINK_ROUTE = 0
"""getifaddrs needs it. Some of the other families reach parts of the host that have no namespaces."""
_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, both with UNAME26, and the query of the current one; so not READ_IMPLIES_EXEC."""
_TERMINAL_INJECTION = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, which type into a terminal that another program reads."""
_FILE_ATTRIBUTES = (0x401C5820, 0x40086602)
"""FS_IOC_FSSETXATTR and FS_IOC_SETFLAGS: a file's owner could take it out of its project, and so of the disk quota.

The newer call for it, file_setattr, is in no table.
"""
_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Argument:
    """The lower 32 bits of an argument, masked, have this value. The kernel uses no more bits of these arguments."""

    index: int
    value: int
    mask: int = _WORD


_Rule = tuple[_Argument, ...]
"""A call is allowed if all of these are true."""


def _unlike(index: int, values: Sequence[int], decided: int = 0) -> list[_Rule]:
    """Return rules of which one is true exactly if the argument is none of `values`.

    A profile has no "not", and rules for one argument cannot be combined, so this is done by bits. A bit in which all
    values agree needs one rule. Where they differ, they are divided by one bit, until one value is left. `decided` are
    the bits in which the argument is like all values already.
    """
    varying = 0
    for value in values:
        varying |= value ^ values[0]
    bits = (1 << position for position in range(32))
    rules: list[_Rule] = [
        (_Argument(index, (values[0] & decided) | (~values[0] & bit), decided | bit),)
        for bit in bits
        if not bit & (varying | decided)
    ]
    if varying:
        common = _WORD & ~varying
        first = varying & -varying
        for half in (0, first):
            rules += _unlike(index, [value for value in values if value & first == half], common | first)
    return rules


_JUDGED: Mapping[str, Sequence[_Rule]] = {
    "clone": [(_Argument(0, 0, _NAMESPACES),)],
    "ioctl": _unlike(1, (*_TERMINAL_INJECTION, *_FILE_ATTRIBUTES)),
    "personality": [(_Argument(0, value),) for value in _PERSONALITIES],
    "socket": [
        (_Argument(0, _UNIX),),
        *(
            (_Argument(0, family), _Argument(1, kind, _SOCKET_TYPE), _Argument(2, protocol))
            for family in (_INET, _INET6)
            for kind, protocols in _INTERNET.items()
            for protocol in protocols
        ),
        (_Argument(0, _NETLINK), _Argument(2, _NETLINK_ROUTE)),
    ],
    "socketpair": [(_Argument(0, _UNIX),)],
}
"""Calls that are allowed if one of their rules is true."""


def _numbers(table: str, machine: str) -> dict[str, int]:
    column = 1 + MACHINES.index(machine)
    rows = (row.split() for row in table.replace("\n", " ").split(","))
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _names(table: str) -> list[str]:
    return [row.split()[0] for row in table.replace("\n", " ").split(",")]


# -- Docker ---------------------------------------------------------------------


def docker_profile() -> str:
    """Return the profile as JSON text."""
    judged = [
        {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [_condition(argument) for argument in rule]}
        for name, rules in _JUDGED.items()
        for rule in rules
    ]
    return dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": list(_DOCKER_ARCH.values()),
            "syscalls": [
                {"names": _names(_ALLOWED), "action": "SCMP_ACT_ALLOW", "args": []},
                {"names": _names(_ABSENT), "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
                *judged,
            ],
        }
    )


def _condition(argument: _Argument) -> dict[str, Any]:
    return {
        "index": argument.index,
        "value": argument.mask,
        "valueTwo": argument.value,
        "op": "SCMP_CMP_MASKED_EQ",
    }


# -- BPF ------------------------------------------------------------------------

_Instruction = tuple[int, int, int, int]
_LD_WORD, _AND, _JA, _JEQ, _JGE, _RET = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARCH, _ARGS = 0, 4, 16
"""Offsets in `struct seccomp_data`; arguments are 64 bits wide, both machines are little-endian."""


def bpf_filter(machine: str) -> bytes | None:
    """Return the filter for `machine`, a value of `platform.machine()`; None if there is none."""
    if machine not in MACHINES:
        return None
    allowed = _numbers(_ALLOWED, machine)
    absent = _numbers(_ABSENT, machine)
    numbers = _numbers(_JUDGED_NUMBERS, machine)
    program: list[_Instruction] = [
        (_LD_WORD, 0, 0, _ARCH),
        (_JEQ, 1, 0, _AUDIT_ARCH[machine]),
        _refuse(ENOSYS),
        (_LD_WORD, 0, 0, _NR),
    ]
    # Each block ends with a RET, so the number need not be loaded again.
    for name, rules in _JUDGED.items():
        block = [step for rule in rules for step in _allow_if(rule)]
        block.append(_refuse(EPERM))
        program += [_jump(_JEQ, 1, 0, numbers[name]), (_JA, 0, 0, len(block)), *block]
    # Calls that are newer than the table fail like in a kernel of the table's age. This includes the numbers of x32.
    newest = max(*allowed.values(), *absent.values(), *numbers.values())
    answers = {**dict.fromkeys(allowed.values(), _ALLOW), **dict.fromkeys(absent.values(), _ERRNO | ENOSYS)}
    runs: list[tuple[int, int]] = []
    for number in range(newest + 1):
        answer = answers.get(number, _ERRNO | EPERM)
        if not runs or runs[-1][1] != answer:
            runs.append((number, answer))
    program += _decide([*runs, (newest + 1, _ERRNO | ENOSYS)])
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _allow_if(rule: _Rule) -> list[_Instruction]:
    steps: list[_Instruction] = [(_RET, 0, 0, _ALLOW)]
    for argument in reversed(rule):
        masked = [(_AND, 0, 0, argument.mask)] if argument.mask != _WORD else []
        load = (_LD_WORD, 0, 0, _ARGS + 8 * argument.index)
        steps = [load, *masked, _jump(_JEQ, 0, len(steps), argument.value), *steps]
    return steps


def _decide(runs: Sequence[tuple[int, int]]) -> list[_Instruction]:
    """Return the program that answers by the number of the call: `runs` are (first number, answer), ascending."""
    if len(runs) == 1:
        return [(_RET, 0, 0, runs[0][1])]
    middle = len(runs) // 2
    below, above = _decide(runs[:middle]), _decide(runs[middle:])
    return [_jump(_JGE, len(below), 0, runs[middle][0]), *below, *above]


def _refuse(errno: int) -> _Instruction:
    return (_RET, 0, 0, _ERRNO | errno)


def _jump(operation: int, if_true: int, if_false: int, value: int) -> _Instruction:
    if max(if_true, if_false) > 255:  # noqa: PLR2004 - a byte
        raise AssertionError("a jump of the filter is too long")
    return (operation, if_true, if_false, value)
