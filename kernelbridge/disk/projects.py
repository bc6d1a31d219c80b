"""Project quotas: limits on directory trees that ext4 and XFS enforce themselves.

A project is a number in each inode. New files inherit it from their directory, and the file system counts blocks and
inodes for each project. `quotactl_fd` (Linux 5.14) needs no name of a device, so no tool is needed and no mount is
looked up; on an older kernel there are no project quotas here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Final

from kernelbridge.aio.threads import BlockingWork
from kernelbridge.disk.limits import DiskLimits, Use

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_QUOTACTL_FD = 443
"""The number of the call, on all architectures."""
_PROJECT = 2
"""PRJQUOTA"""
_GET, _SET, _STATE = 0x800007, 0x800008, 0x5805
"""Q_GETQUOTA, Q_SETQUOTA and Q_XGETQSTAT, which both file systems answer."""
_ENFORCED = 1 << 5
"""FS_QUOTA_PDQ_ENFD"""
_QUOTA: Final = struct.Struct("=8QI4x")
"""`struct if_dqblk`: limits in KiB, the use in bytes."""
_LIMITS = 1 | 4
"""QIF_BLIMITS, QIF_ILIMITS"""
_GET_ATTRIBUTES, _SET_ATTRIBUTES = 0x801C581F, 0x401C5820
"""FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR"""
_ATTRIBUTES: Final = struct.Struct("=5I8x")
"""`struct fsxattr`: flags, extent size, number of extents, project, extent size of copies."""
_INHERIT = 0x200
"""FS_XFLAG_PROJINHERIT"""
_PROJECTS = 1 << 16
"""How many projects one server has."""
_PIECE = 100
_CAP_SYS_ADMIN = 21
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Projects:
    """The projects of one server's sessions. Blocking; thread-safe."""

    def __init__(self, fd: int, first: int) -> None:
        """Use `fd`, an open directory of the file system, and numbers from `first`."""
        self._fd = fd
        self._first = first
        self.numbers: dict[str, int] = {}
        """The project of each session that has one."""
        self._lock = Lock()

    @classmethod
    def find(cls, directory: Path, *, instance: str) -> Projects | None:
        """Return the projects of a server, or None if there are none that it can use.

        Its file system or its kernel enforces no project quotas, or this process may not set them.

        `instance` decides the numbers: servers with data directories on one file system use others.
        """
        fd = os.open(directory, _DIRECTORY)
        try:
            state = ctypes.create_string_buffer(128)
            state[0] = b"\x01"  # FS_QSTAT_VERSION
            _quotactl(fd, _STATE, 0, state)
            if struct.unpack_from("=H", state, 2)[0] & _ENFORCED and may_set_quotas():
                block = int.from_bytes(hashlib.sha256(instance.encode()).digest()[:2], "big") >> 2
                return cls(fd, first=(block + 1) * _PROJECTS)
        except OSError:
            pass  # what it lacks does not matter: the watcher does the work
        os.close(fd)
        return None

    def close(self) -> None:
        """Release the directory."""
        os.close(self._fd)

    def know(self, name: str, root: Path) -> None:
        """Note the project of a session's directory that exists, if it has one."""
        with contextlib.suppress(OSError), _opened(root) as fd:
            project = self._project(fd)
            if project is not None:
                with self._lock:
                    self.numbers[name] = project

    def apply_limits(self, name: str, root: Path, limits: DiskLimits) -> BlockingWork[None]:
        """Limit a session's directory; put all that is in it into the session's project if it is not. Raises `OSError`.

        Each session has a project of its own, also if the directory above has one.
        """
        with _opened(root) as fd:
            with self._lock:
                project = self.numbers.get(name) or self._take(name)
            self._set(project, limits)
            if self._project(fd) != project:
                # The top is last: a walk that was interrupted is done again.
                yield from _entering(fd, project)
                _enter(fd, project)

    def release(self, name: str) -> None:
        """Give back the project of a session whose files were deleted."""
        with self._lock:
            project = self.numbers.pop(name, None)
        if project is not None:
            with contextlib.suppress(OSError):
                self._set(project, DiskLimits())

    def use(self, name: str) -> Use | None:
        """Return what a session uses, or None if it has no project. Raises `OSError`."""
        with self._lock:
            project = self.numbers.get(name)
        return None if project is None else self._use(project)

    def _take(self, name: str) -> int:
        """Return a number that no session has, and of which nothing is left on the disk."""
        taken = set(self.numbers.values())
        for project in range(self._first, self._first + _PROJECTS):
            if project not in taken and not self._use(project).files:
                self.numbers[name] = project
                return project
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def _project(self, fd: int) -> int | None:
        """Return the project of a directory, if it is one of this server's."""
        flags, _, _, project, _ = _attributes(fd)
        own = flags & _INHERIT and self._first <= project < self._first + _PROJECTS
        return project if own else None

    def _use(self, project: int) -> Use:
        quota = ctypes.create_string_buffer(_QUOTA.size)
        try:
            _quotactl(self._fd, _GET, project, quota)
        except OSError as exc:
            if exc.errno in {errno.ENOENT, errno.ESRCH}:  # never used
                return Use(0, 0)
            raise
        _, _, size, _, _, files, *_ = _QUOTA.unpack(quota)
        return Use(size, files)

    def _set(self, project: int, limits: DiskLimits) -> None:
        size = -(-limits.size // 1024)
        quota = _QUOTA.pack(size, 0, 0, limits.files, 0, 0, 0, 0, _LIMITS)
        _quotactl(self._fd, _SET, project, ctypes.create_string_buffer(quota, _QUOTA.size))


def may_set_quotas(status: Path = Path("/proc/self/status")) -> bool:
    """Return whether this process may set quotas: root on the host may, in a container as a rule not."""
    found = re.search(r"^CapEff:\s+(\w+)$", status.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> _CAP_SYS_ADMIN & 1)


def _entering(top: int, project: int) -> BlockingWork[None]:
    """Put everything below an open directory into a project; yields often.

    Only files and directories can be: a link or a FIFO that is older than the quota stays without.
    """
    for count, (_, directories, files, fd) in enumerate(os.fwalk(".", dir_fd=top, onerror=None), 1):
        for number, name in enumerate((*directories, *files), 1):
            with contextlib.suppress(OSError):
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
                    _enter_entry(fd, name, project)
            if (count + number) % _PIECE == 0:
                yield
    yield


def _enter_entry(directory: int, name: str, project: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        _enter(fd, project)
    finally:
        os.close(fd)


def _enter(fd: int, project: int) -> None:
    flags, extent, extents, _, copies = _attributes(fd)
    inherit = _INHERIT if stat.S_ISDIR(os.fstat(fd).st_mode) else 0
    fcntl.ioctl(fd, _SET_ATTRIBUTES, _ATTRIBUTES.pack(flags | inherit, extent, extents, project, copies))


def _attributes(fd: int) -> tuple[int, int, int, int, int]:
    flags, extent, extents, project, copies = _ATTRIBUTES.unpack(
        fcntl.ioctl(fd, _GET_ATTRIBUTES, bytes(_ATTRIBUTES.size))
    )
    return flags, extent, extents, project, copies


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _quotactl(fd: int, command: int, project: int, data: ctypes.Array[ctypes.c_char]) -> None:
    result = _LIBC.syscall(
        ctypes.c_long(_QUOTACTL_FD),
        ctypes.c_uint(fd),
        ctypes.c_uint(command << 8 | _PROJECT),
        ctypes.c_uint(project),
        data,
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
