"""The filter, judged by an interpreter of the few BPF instructions that it uses."""

import errno
import struct

import pytest

from kernelbridge.runtimes.local_seccomp import seccomp_filter

X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
ALLOWED = 0x7FFF0000


def judge(program: bytes, arch: int, number: int, *args: int) -> int:
    """Run the filter over one system call; give what it returns."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *(args + (0,) * 6)[:6])
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, k = code[position]
        position += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x06:
                return int(k)
            case 0x15:
                position += if_true if accumulator == k else if_false
            case 0x35:
                position += if_true if accumulator >= k else if_false
            case 0x45:
                position += if_true if accumulator & k else if_false
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


def refused(number: int) -> int:
    return 0x00050000 | number


def program(machine: str) -> bytes:
    compiled = seccomp_filter(machine)
    assert compiled is not None
    return compiled


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_what_is_new_has_one_number_everywhere(machine: str, arch: int) -> None:
    for number in (425, 426, 427, 428, 429, 430, 431, 432, 433, 442):
        assert judge(program(machine), arch, number) == refused(errno.EPERM)
    assert judge(program(machine), arch, 435) == refused(errno.ENOSYS)
    assert judge(program(machine), arch, 434) == ALLOWED  # pidfd_open


@pytest.mark.parametrize(
    ("machine", "arch", "numbers"),
    [
        ("x86_64", X86_64, {"ptrace": 101, "mount": 165, "unshare": 272, "keyctl": 250, "bpf": 321, "setns": 308}),
        ("aarch64", AARCH64, {"ptrace": 117, "mount": 40, "unshare": 97, "keyctl": 219, "bpf": 280, "setns": 268}),
    ],
)
def test_dangerous_calls_are_refused(machine: str, arch: int, numbers: dict[str, int]) -> None:
    for number in numbers.values():
        assert judge(program(machine), arch, number) == refused(errno.EPERM)


@pytest.mark.parametrize(
    ("machine", "arch", "clone", "socket", "ioctl"),
    [("x86_64", X86_64, 56, 41, 16), ("aarch64", AARCH64, 220, 198, 29)],
)
def test_arguments_decide(machine: str, arch: int, clone: int, socket: int, ioctl: int) -> None:
    compiled = program(machine)
    assert judge(compiled, arch, clone, 0x3D0F00) == ALLOWED  # a thread
    assert judge(compiled, arch, clone, 0x10000000) == refused(errno.EPERM)  # CLONE_NEWUSER
    assert judge(compiled, arch, clone, 0x00020000 | 17) == refused(errno.EPERM)  # CLONE_NEWNS
    assert [judge(compiled, arch, socket, family) for family in (1, 2, 10, 16)] == [ALLOWED] * 4
    for family in (0, 17, 38, 40, 44):  # AF_PACKET, AF_ALG, AF_VSOCK, AF_XDP
        assert judge(compiled, arch, socket, family) == refused(errno.EAFNOSUPPORT)
    assert judge(compiled, arch, ioctl, 0, 0x5413) == ALLOWED  # TIOCGWINSZ
    assert judge(compiled, arch, ioctl, 0, 0x5412) == refused(errno.EPERM)  # TIOCSTI
    assert judge(compiled, arch, ioctl, 0, 0xFFFFFFFF_00005412) == refused(errno.EPERM)  # the kernel looks at 32 bits


def test_the_tables_of_other_architectures_are_closed() -> None:
    assert judge(program("x86_64"), I386, 4) == refused(errno.ENOSYS)
    assert judge(program("x86_64"), X86_64, 0x40000000 | 1) == refused(errno.ENOSYS)  # x32


def test_common_calls_pass() -> None:
    for number in (0, 1, 9, 13, 39, 57, 59, 61, 202, 231, 257, 318, 334):
        assert judge(program("x86_64"), X86_64, number) == ALLOWED


def test_no_filter_for_a_machine_that_was_never_looked_at() -> None:
    assert seccomp_filter("riscv64") is None
