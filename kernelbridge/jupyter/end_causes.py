"""Why executions are ended from outside, in words (pure)."""

from __future__ import annotations

import signal as signals
from typing import NamedTuple

from kernelbridge.runtimes.contract import ExitStatus


class Ended(NamedTuple):
    """What the result of an execution says that was ended from outside."""

    cause: str | None
    error: str
    """`<Name>: <message>` on one line."""
    exit_code: int | None = None
    """That of the kernel's process, if it has ended by itself."""
    signal: str | None = None
    """The signal that ended it, e.g. `SIGSEGV`."""
    kernel_lives: bool = False
    """Whether its kernel goes on, with its variables."""


BUS_ERROR = (
    "it used memory of a mapped file that could not be had: /dev/shm, /tmp or the session's disk is full, or the file"
    " was cut short meanwhile"
)
"""What SIGBUS mostly means."""

_CLOSED = "SessionClosed: the session was closed while the cell ran"
_RESTARTED = "KernelRestarted: the interpreter was restarted while the cell ran; its variables are lost"

SESSION_CLOSED = Ended("session_closed", _CLOSED)
KERNEL_RESTARTED = Ended("kernel_restarted", _RESTARTED)

_LOST = "ResultLost: the cell ended while no server was there, or never began; its kernel does not keep what it tells"
_NEVER_RAN = "NeverRan: the server ended before the cell reached its kernel; send it again"
INTERRUPTED_BEHIND = Ended("interrupted", "KeyboardInterrupt", kernel_lives=True)
"""The interrupt came when the cell's code was done, and hit the kernel's own: only the reply is lost."""
RESULT_LOST = Ended(None, _LOST)
NEVER_RAN = Ended(None, _NEVER_RAN)
UNKNOWN = frozenset({_LOST, _NEVER_RAN})
"""The errors that say nothing of the kernel: it lives, with its variables."""


def process_ended(status: ExitStatus) -> Ended:
    """Say how the kernel's process has ended."""
    if status.oom:
        return out_of_memory()
    if status.lost:
        return sandbox_lost()
    return kernel_died(str(status), code=status.code, signal=status.signal)


def sandbox_lost_meanwhile() -> Ended:
    """Say that the sandbox ended while no server was there."""
    what = "the cell's output and its variables are lost, its files are kept"
    error = f"SandboxLost: the sandbox ended while no server was there; {what}"
    return Ended("sandbox_lost", error)


def kernel_died(how: str, *, code: int | None, signal: int | None) -> Ended:
    """Say that the kernel's process has ended, and how, in words and numbers."""
    name = None if signal is None else signal_name(signal)
    if signal == signals.SIGBUS:
        how += f": {BUS_ERROR}"
    return Ended("kernel_died", f"KernelDied: the kernel ended ({how}); its variables are lost", code, name)


def out_of_memory() -> Ended:
    """Say that the kernel was killed for want of memory."""
    error = (
        "OutOfMemory: the kernel used more memory than the session may, in which files in /dev/shm and /tmp count;"
        " its variables are lost"
    )
    return Ended("out_of_memory", error, signal=signal_name(signals.SIGKILL))


def sandbox_lost() -> Ended:
    """Say that the kernel ended with its sandbox."""
    error = "SandboxLost: the sandbox ended while the cell ran; its variables are lost, its files are kept"
    return Ended("sandbox_lost", error)


def kernel_broke(fault: str) -> Ended:
    """Say what the kernel did for which it was ended."""
    return Ended("kernel_died", f"KernelDied: the kernel was ended because {fault}; its variables are lost")


def signal_name(number: int) -> str:
    """Give a signal's name; `signal N` for one without."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
