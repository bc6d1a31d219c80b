"""System calls for which Python has no function: renameat2 and inotify."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE = 1

IN_MODIFY = 0x2
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_ISDIR = 0x40000000

_HEAD: Final = struct.Struct("iIII")


class InotifyEvent(NamedTuple):
    """One event, as `inotify(7)` describes it."""

    wd: int
    mask: int
    name: str
    """Of the entry in the watched directory; bytes that cannot be decoded are surrogates."""


def rename_new(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    """Rename with RENAME_NOREPLACE: raises `FileExistsError` if the target exists, and `OSError`."""
    result = _LIBC.renameat2(src_dir_fd, os.fsencode(source), dst_dir_fd, os.fsencode(target), _RENAME_NOREPLACE)
    _check(result, source)


def inotify_init() -> int:
    """Make an inotify instance; return its descriptor, which does not block. Raises `OSError`."""
    return _check(_LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def inotify_add_directory(fd: int, directory: int, mask: int) -> int:
    """Watch an open directory; return the watch descriptor. Raises `OSError`.

    The path that the kernel gets is one of /proc, which the sandbox cannot change.
    """
    path = f"/proc/self/fd/{directory}"
    return _check(_LIBC.inotify_add_watch(fd, path.encode(), ctypes.c_uint32(mask | IN_ONLYDIR)), path)


def inotify_remove(fd: int, wd: int) -> None:
    """Remove a watch. Raises `OSError`, also if the directory has been deleted."""
    _check(_LIBC.inotify_rm_watch(fd, wd))


def inotify_read(fd: int, size: int) -> list[InotifyEvent]:
    """Read at most `size` bytes of events; return an empty list if there are none."""
    try:
        return list(_events(os.read(fd, size)))
    except BlockingIOError:
        return []


def _events(data: bytes) -> Iterator[InotifyEvent]:
    at = 0
    while at < len(data):
        wd, mask, _cookie, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield InotifyEvent(wd, mask, os.fsdecode(data[at : at + length].rstrip(b"\0")))
        at += length


def _check(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
