"""The system calls that a local sandbox may not make, as a compiled filter; pure.

A classic BPF program over `struct seccomp_data` (linux/seccomp.h), as bubblewrap takes it: 8-byte
`struct sock_filter` instructions, judged from the first to a `RET`. It refuses and never kills: programs fall
back when a call is not there. Calls that a process without capabilities cannot make anyway are refused as well,
because reaching their code in the host's kernel is what an attacker needs. A call of another
architecture's table (32-bit, x32) is refused altogether.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from errno import EAFNOSUPPORT, ENOSYS, EPERM

_LD_WORD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
"""Offsets in `struct seccomp_data`; arguments are 64 bits wide, both machines are little-endian."""

_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 (loopback is all they reach) and AF_NETLINK (for getifaddrs)."""
_TERMINAL_INJECTION = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: typing into a terminal that somebody else reads."""
_X32_BIT = 0x40000000


@dataclass(frozen=True, slots=True)
class _Machine:
    audit_arch: int
    clone: int
    socket: int
    ioctl: int
    refused: dict[str, int]


_COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
    "open_tree_attr": 467,
}
"""Since 424 a call has one number on every machine."""

_CLONE3 = 435
"""Its flags are in memory, where a filter cannot look; without it the C library uses clone."""

_X86_64 = _Machine(
    audit_arch=0xC000003E,
    clone=56,
    socket=41,
    ioctl=16,
    refused={
        "ptrace": 101,
        "syslog": 103,
        "uselib": 134,
        "vhangup": 153,
        "modify_ldt": 154,
        "pivot_root": 155,
        "_sysctl": 156,
        "chroot": 161,
        "acct": 163,
        "settimeofday": 164,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "swapoff": 168,
        "reboot": 169,
        "sethostname": 170,
        "setdomainname": 171,
        "iopl": 172,
        "ioperm": 173,
        "create_module": 174,
        "init_module": 175,
        "delete_module": 176,
        "quotactl": 179,
        "nfsservctl": 180,
        "lookup_dcookie": 212,
        "clock_settime": 227,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "finit_module": 313,
        "kexec_file_load": 320,
        "bpf": 321,
        "userfaultfd": 323,
        **_COMMON,
    },
)

_AARCH64 = _Machine(
    audit_arch=0xC00000B7,
    clone=220,
    socket=198,
    ioctl=29,
    refused={
        "lookup_dcookie": 18,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "nfsservctl": 42,
        "chroot": 51,
        "vhangup": 58,
        "quotactl": 60,
        "acct": 89,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "clock_settime": 112,
        "syslog": 116,
        "ptrace": 117,
        "reboot": 142,
        "sethostname": 161,
        "setdomainname": 162,
        "settimeofday": 170,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "swapon": 224,
        "swapoff": 225,
        "perf_event_open": 241,
        "fanotify_init": 262,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "finit_module": 273,
        "bpf": 280,
        "userfaultfd": 282,
        "kexec_file_load": 294,
        **_COMMON,
    },
)

_MACHINES = {"x86_64": _X86_64, "aarch64": _AARCH64}


def seccomp_filter(machine: str) -> bytes | None:
    """Give the filter for `machine` (as `platform.machine()` says it), or None where there is none."""
    table = _MACHINES.get(machine)
    return _assemble(table) if table else None


def _assemble(machine: _Machine) -> bytes:
    program = [
        _load(_ARCH),
        (_JEQ, 1, 0, machine.audit_arch),
        _refuse(ENOSYS),
        _load(_NR),
        (_JGE, 0, 1, _X32_BIT),
        _refuse(ENOSYS),
        *_when(_CLONE3, [_refuse(ENOSYS)]),
    ]
    for number in sorted(machine.refused.values()):
        program += _when(number, [_refuse(EPERM)])
    # Each of these blocks ends in a RET, so none has to load the number again.
    program += _when(machine.clone, [_load(_ARG0), (_JSET, 0, 1, _NAMESPACES), _refuse(EPERM), _allow()])
    families = [step for family in _FAMILIES for step in _when(family, [_allow()])]
    program += _when(machine.socket, [_load(_ARG0), *families, _refuse(EAFNOSUPPORT)])
    requests = [step for request in _TERMINAL_INJECTION for step in _when(request, [_refuse(EPERM)])]
    program += _when(machine.ioctl, [_load(_ARG1), *requests, _allow()])
    program.append(_allow())
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


_Instruction = tuple[int, int, int, int]


def _load(offset: int) -> _Instruction:
    return (_LD_WORD, 0, 0, offset)


def _allow() -> _Instruction:
    return (_RET, 0, 0, _ALLOW)


def _refuse(errno: int) -> _Instruction:
    return (_RET, 0, 0, _ERRNO | errno)


def _when(value: int, block: list[_Instruction]) -> list[_Instruction]:
    """Run `block` if the loaded word is `value`, else step over it."""
    return [(_JEQ, 0, len(block), value), *block]
