"""The limit of a local sandbox's terminals, where the server is not root.

Root mounts a devpts with a limit for each sandbox (`mounts.stage_terminals`). Other users cannot, but the one that
bubblewrap mounts belongs to a user namespace of this user, so a process of this user may enter that and change it. It
has to be another process, because one with threads cannot enter.
"""

from __future__ import annotations

import subprocess
import sys

from kernelbridge.runtimes.local.mounts import terminal_options

_PROGRAM = """
import ctypes, fcntl, os, sys
NS_GET_USERNS, CLONE_NEWUSER, CLONE_NEWNS = 0xB701, 0x10000000, 0x20000
MS_NOSUID, MS_NOEXEC, MS_REMOUNT = 2, 8, 32
libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

mounts = os.open("/proc/%s/ns/mnt" % sys.argv[1], os.O_RDONLY)
user = fcntl.ioctl(mounts, NS_GET_USERNS)
check(libc.setns(user, CLONE_NEWUSER))
check(libc.setns(mounts, CLONE_NEWNS))
flags = ctypes.c_ulong(MS_REMOUNT | MS_NOSUID | MS_NOEXEC)
check(libc.mount(b"devpts", b"/dev/pts", b"devpts", flags, sys.argv[2].encode()))
"""
_SECONDS = 10.0


def limit_terminals(pid: int, ptys: int) -> str | None:
    """Limit the terminals of the sandbox of `pid`; return the reason if that failed. Blocking.

    No user code may run in it yet: for a moment there is a process in it that may change its mounts.
    """
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(pid), terminal_options(ptys)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603 - ours
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return None if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
