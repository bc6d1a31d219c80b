"""Causes and error texts of executions that are ended from outside (pure)."""

from __future__ import annotations

import signal as signals
from typing import NamedTuple

from kernelbridge.runtimes.contract import ExitStatus


class Ended(NamedTuple):
    """The cause and the error of an execution that was ended from outside."""

    cause: str | None
    error: str
    """`<Name>: <message>` on one line."""
    exit_code: int | None = None
    """Exit code of the kernel's process, if it has ended by itself."""
    signal: str | None = None
    """The signal that ended the process, such as `SIGSEGV`."""
    kernel_lives: bool = False
    """Whether the kernel runs on, with its variables."""


BUS_ERROR = (
    "it used a part of a mapped file that has no memory or disk: /dev/shm, /tmp or the session's disk is full, or the"
    " file was truncated meanwhile"
)
"""What SIGBUS usually means."""

SESSION_CLOSED = Ended("session_closed", "SessionClosed: the session was closed while the cell ran")
KERNEL_RESTARTED = Ended(
    "kernel_restarted", "KernelRestarted: the interpreter was restarted while the cell ran; its variables are lost"
)
OUT_OF_MEMORY = Ended(
    "out_of_memory",
    "OutOfMemory: the kernel exceeded the session's memory limit, which includes files in /dev/shm and /tmp;"
    " its variables are lost",
    signal="SIGKILL",
)
SANDBOX_LOST = Ended(
    "sandbox_lost",
    "SandboxLost: the sandbox ended while the cell ran; its variables are lost, its files are kept",
)
SANDBOX_LOST_MEANWHILE = Ended(
    "sandbox_lost",
    "SandboxLost: the sandbox ended while no server was connected; the cell's output and its variables are lost,"
    " its files are kept",
)
RESULT_LOST = Ended(
    None,
    "ResultLost: the cell ended while no server was connected, or never began; its kernel does not keep results",
    kernel_lives=True,
)
NEVER_RAN = Ended(
    None, "NeverRan: the server ended before the cell reached its kernel; send it again", kernel_lives=True
)
REPLY_LOST = Ended("interrupted", "KeyboardInterrupt", kernel_lives=True)
"""The interrupt arrived after the end of the cell's code and hit the kernel's own: only the reply is lost."""


def process_ended(status: ExitStatus) -> Ended:
    """Return the end of a cell whose kernel's process has ended."""
    if status.oom:
        return OUT_OF_MEMORY
    if status.lost:
        return SANDBOX_LOST
    how = f"{status}: {BUS_ERROR}" if status.signal == signals.SIGBUS else str(status)
    error = f"KernelDied: the kernel ended ({how}); its variables are lost"
    return Ended("kernel_died", error, status.code, None if status.signal is None else signal_name(status.signal))


def kernel_broke(fault: str) -> Ended:
    """Return the end of a cell whose kernel was ended for a fault."""
    return Ended("kernel_died", f"KernelDied: the kernel was ended because {fault}; its variables are lost")


def signal_name(number: int) -> str:
    """Return the name of a signal, or `signal N` if it has none."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
