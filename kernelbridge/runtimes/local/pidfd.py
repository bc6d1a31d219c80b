"""Processes of this machine that need not be our children, held by pidfd: a pid may be reused, a pidfd is not.

These are system calls and not `os.pidfd_open`, which a Python that was built for older kernels lacks (uv's, conda's).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from pathlib import Path

import msgspec

_PIDFD_SEND_SIGNAL, _PIDFD_OPEN = 424, 434
"""The numbers of the system calls, the same on every machine."""
_libc = ctypes.CDLL(None, use_errno=True)


class Identity(msgspec.Struct, frozen=True):
    """Identifies one process of one boot."""

    pid: int
    started: int
    """In clock ticks since the machine booted."""
    boot: str
    """The id of that boot."""

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Return the identity of a running process; None if there is none."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return cls(pid, int(stat.rpartition(")")[2].split()[19]), boot)

    def open(self) -> int:
        """Return a pidfd, which the caller closes; raises `ProcessLookupError` if the process has ended."""
        pidfd = open_pidfd(self.pid)
        if Identity.of(self.pid) != self:
            os.close(pidfd)
            raise ProcessLookupError(self.pid)
        return pidfd


def open_pidfd(pid: int) -> int:
    """Return a pidfd, which the caller closes; raises `ProcessLookupError`."""
    return _call(_PIDFD_OPEN, pid, 0)


def send_signal(pidfd: int, number: int) -> None:
    """Signal a process; does nothing if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        _call(_PIDFD_SEND_SIGNAL, pidfd, number, 0, 0)


def wait_for_end(pidfd: int, seconds: float) -> bool:
    """Wait for the end of a process; return whether it has ended. Blocking."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _call(number: int, *arguments: int) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
