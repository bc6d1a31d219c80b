"""The system-call filter: the BPF judged by an interpreter of the few instructions that it uses, and Docker's JSON."""

import errno
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.runtimes.seccomp import bpf_filter, docker_profile

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
ALLOWED = 0x7FFF0000
REFUSED, ABSENT = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS

DANGEROUS = {
    name: (x86_64, aarch64)
    for name, x86_64, aarch64 in [
        ("_sysctl", 156, None),
        ("acct", 163, 89),
        ("add_key", 248, 217),
        ("bpf", 321, 280),
        ("chroot", 161, 51),
        ("clock_settime", 227, 112),
        ("create_module", 174, None),
        ("delete_module", 176, 106),
        ("fanotify_init", 300, 262),
        ("fanotify_mark", 301, 263),
        ("finit_module", 313, 273),
        ("fsconfig", 431, 431),
        ("fsmount", 432, 432),
        ("fsopen", 430, 430),
        ("fspick", 433, 433),
        ("init_module", 175, 105),
        ("ioperm", 173, None),
        ("iopl", 172, None),
        ("kcmp", 312, 272),
        ("kexec_file_load", 320, 294),
        ("kexec_load", 246, 104),
        ("keyctl", 250, 219),
        ("lookup_dcookie", 212, 18),
        ("lsm_set_self_attr", 460, 460),
        ("mbind", 237, 235),
        ("memfd_secret", 447, 447),
        ("migrate_pages", 256, 238),
        ("modify_ldt", 154, None),
        ("mount", 165, 40),
        ("mount_setattr", 442, 442),
        ("move_mount", 429, 429),
        ("move_pages", 279, 239),
        ("name_to_handle_at", 303, 264),
        ("nfsservctl", 180, 42),
        ("open_by_handle_at", 304, 265),
        ("open_tree", 428, 428),
        ("perf_event_open", 298, 241),
        ("pidfd_getfd", 438, 438),
        ("pivot_root", 155, 41),
        ("process_madvise", 440, 440),
        ("process_vm_readv", 310, 270),
        ("process_vm_writev", 311, 271),
        ("ptrace", 101, 117),
        ("quotactl", 179, 60),
        ("quotactl_fd", 443, 443),
        ("reboot", 169, 142),
        ("request_key", 249, 218),
        ("set_mempolicy", 238, 237),
        ("setdomainname", 171, 162),
        ("sethostname", 170, 161),
        ("setns", 308, 268),
        ("settimeofday", 164, 170),
        ("swapoff", 168, 225),
        ("swapon", 167, 224),
        ("syslog", 103, 116),
        ("umount2", 166, 39),
        ("unshare", 272, 97),
        ("uselib", 134, None),
        ("userfaultfd", 323, 282),
        ("vhangup", 153, 58),
    ]
}
"""Calls that sandboxes may not make, with their numbers on x86-64 and ARM64."""

ABSENT_CALLS = {
    "clone3": (435, 435),
    "io_cancel": (210, 3),
    "io_destroy": (207, 1),
    "io_getevents": (208, 4),
    "io_pgetevents": (333, 292),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
}
CLONE, IOCTL, PERSONALITY, SOCKET, SOCKETPAIR = "clone", "ioctl", "personality", "socket", "socketpair"
JUDGED = {CLONE: (56, 220), IOCTL: (16, 29), PERSONALITY: (135, 92), SOCKET: (41, 198), SOCKETPAIR: (53, 199)}
COMMON = {"read": (0, 63), "execve": (59, 221), "futex": (202, 98), "openat": (257, 56), "rseq": (334, 293)}

READ_IMPLIES_EXEC = 0x0400000
TIOCSTI, TIOCGWINSZ, TIOCLINUX = 0x5412, 0x5413, 0x541C
SET_PROJECT, GET_PROJECT, SET_FLAGS, GET_FLAGS = 0x401C5820, 0x801C581F, 0x40086602, 0x80086601
"""FS_IOC_FSSETXATTR, FS_IOC_FSGETXATTR, FS_IOC_SETFLAGS, FS_IOC_GETFLAGS."""

ARGUMENTS = [
    (CLONE, (0x3D0F00,), True),  # a thread
    (CLONE, (0x10000000,), False),  # CLONE_NEWUSER
    (CLONE, (0x00020000 | 17,), False),  # CLONE_NEWNS
    *((CLONE, (1 << bit,), False) for bit in (17, 25, 26, 27, 28, 29, 30)),
    (PERSONALITY, (0,), True),
    (PERSONALITY, (0x8,), True),
    (PERSONALITY, (0xFFFFFFFF,), True),
    (PERSONALITY, (READ_IMPLIES_EXEC,), False),
    (PERSONALITY, (0x0040000,), False),  # ADDR_NO_RANDOMIZE
    (PERSONALITY, (0x8 | READ_IMPLIES_EXEC,), False),
    (SOCKET, (1, 1, 0), True),
    *((SOCKET, (family, 1, protocol), True) for family in (2, 10) for protocol in (0, 6)),
    *((SOCKET, (family, 2, protocol), True) for family in (2, 10) for protocol in (0, 1, 17, 58)),
    *((SOCKET, (family, 3, protocol), True) for family in (2, 10) for protocol in (1, 58)),  # an older ping
    *((SOCKET, (family, kind | 0o2004000, 0), True) for family in (2, 10) for kind in (1, 2)),  # CLOEXEC, NONBLOCK
    # DCCP, SCTP and what has no name yet: the kernel would load a module to find out the protocol.
    *(
        (SOCKET, (family, kind | flags, protocol), False)
        for family in (2, 10)
        for kind in (0, *range(4, 16))
        for flags in (0, 0o2004000)
        for protocol in (0, 6)
    ),
    *((SOCKET, (family, 1, protocol), False) for family in (2, 10) for protocol in (33, 115, 132, 136, 255, 262)),
    (SOCKET, (16, 3, 0), True),
    *((SOCKET, (16, 3, family), False) for family in range(1, 23)),
    *((SOCKET, (family, 1, 0), False) for family in (0, *range(3, 10), *range(11, 16), *range(17, 47))),
    (SOCKETPAIR, (1, 1, 0), True),
    (SOCKETPAIR, (30, 1, 0), False),  # AF_TIPC
    (IOCTL, (0, TIOCGWINSZ), True),
    (IOCTL, (0, TIOCSTI), False),
    (IOCTL, (0, TIOCLINUX), False),
    (IOCTL, (0, 0xFFFFFFFF_00000000 | TIOCSTI), False),  # the kernel looks at 32 bits
    (IOCTL, (0, GET_PROJECT), True),
    (IOCTL, (0, GET_FLAGS), True),
    *((IOCTL, (0, high << 32 | low), False) for high in (0, 1, 0xFFFFFFFF) for low in (SET_PROJECT, SET_FLAGS)),
    (IOCTL, (0, 0xFFFFFFFF_80045430), True),  # TIOCGPTN, as a C library that widens an int gives it
]
"""Call, its arguments, whether it is allowed."""


def bpf(machine: str, number: int, *args: int, arch: int | None = None) -> int:
    """Run the filter over one system call; give what it returns."""
    program = bpf_filter(machine)
    assert program is not None
    arch = ARCH[machine] if arch is None else arch
    data = struct.pack("<IIQ6Q", number, arch, 0, *(args + (0,) * 6)[:6])
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, k = code[position]
        position += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x54:
                accumulator &= k
            case 0x05:
                position += k
            case 0x06:
                return int(k)
            case 0x15:
                position += if_true if accumulator == k else if_false
            case 0x35:
                position += if_true if accumulator >= k else if_false
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


def docker(name: str, *args: int) -> int:
    """Judge a call by the profile, as libseccomp does: a rule holds if all its conditions do, one rule is enough."""
    profile = json.loads(docker_profile())
    for rule in profile["syscalls"]:
        if name in rule["names"] and all(holds(condition, args) for condition in rule.get("args", ())):
            return ALLOWED if rule["action"] == "SCMP_ACT_ALLOW" else 0x00050000 | rule["errnoRet"]
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    return REFUSED


def holds(condition: dict[str, Any], args: tuple[int, ...]) -> bool:
    assert condition["op"] == "SCMP_CMP_MASKED_EQ"
    value = (args + (0,) * 6)[condition["index"]]
    return bool(value & condition["value"] == condition["valueTwo"])


@pytest.mark.parametrize("machine", ARCH)
@pytest.mark.parametrize(("calls", "answer"), [(DANGEROUS, REFUSED), (ABSENT_CALLS, ABSENT), (COMMON, ALLOWED)])
def test_a_call_has_the_same_answer_in_both_forms(
    machine: str, calls: dict[str, tuple[int, int | None]], answer: int
) -> None:
    for name, numbers in calls.items():
        number = numbers[list(ARCH).index(machine)]
        assert docker(name) == answer, name
        if number is not None:
            assert bpf(machine, number) == answer, name


@pytest.mark.parametrize("machine", ARCH)
def test_arguments_decide_in_both_forms_alike(machine: str) -> None:
    for name, args, allowed in ARGUMENTS:
        expected = ALLOWED if allowed else REFUSED
        assert docker(name, *args) == expected, (name, args)
        assert bpf(machine, JUDGED[name][list(ARCH).index(machine)], *args) == expected, (name, args)


REFUSED_REQUESTS = (TIOCSTI, TIOCLINUX, SET_PROJECT, SET_FLAGS)


@given(st.integers(0, (1 << 64) - 1))
def test_all_of_ioctl_is_allowed_but_what_types_into_terminals_or_leaves_a_quota(request: int) -> None:
    expected = REFUSED if request & 0xFFFFFFFF in REFUSED_REQUESTS else ALLOWED
    assert docker(IOCTL, 0, request) == expected
    assert bpf("x86_64", JUDGED[IOCTL][0], 0, request) == expected


@given(st.sampled_from(REFUSED_REQUESTS), st.integers(-16, 16), st.integers(0, 31))
def test_and_so_are_its_neighbours(refused: int, near: int, bit: int) -> None:
    judge = test_all_of_ioctl_is_allowed_but_what_types_into_terminals_or_leaves_a_quota.hypothesis.inner_test  # type: ignore[attr-defined]
    judge(refused + near)
    judge(refused ^ 1 << bit)


def test_every_number_of_x86_64_is_allowed_by_name_or_refused() -> None:
    """By counting: a number in the table that belongs to no name, or to two, would be one too few."""
    names = {name for rule in json.loads(docker_profile())["syscalls"] for name in rule["names"]}
    answered = [number for number in range(512) if bpf("x86_64", number, 0, 0, 0) != REFUSED]
    unused = 512 - 467  # newer than the table: answered as absent
    assert len(answered) - unused == len(names) - 1 - 1  # socket and socketpair refuse the family 0


@pytest.mark.parametrize("machine", ARCH)
def test_what_is_newer_than_the_table_is_absent(machine: str) -> None:
    assert bpf(machine, 466) == ALLOWED  # removexattrat
    assert bpf(machine, 467) == bpf(machine, 600) == bpf(machine, 0xFFFFFFFF) == ABSENT


def test_the_tables_of_other_architectures_are_closed() -> None:
    assert bpf("x86_64", 4, arch=I386) == ABSENT
    assert bpf("x86_64", 0x40000000 | 1) == ABSENT  # x32
    assert json.loads(docker_profile())["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]


def test_no_filter_for_a_machine_that_was_never_looked_at() -> None:
    assert bpf_filter("riscv64") is None
