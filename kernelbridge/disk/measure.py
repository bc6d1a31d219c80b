"""Measuring what a directory tree uses of the disk, while hostile programs change it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kernelbridge.aio.threads import BlockingWork
from kernelbridge.disk.limits import Use

TOO_DEEP = 1 << 40
"""Files that count instead of a directory that is too deep to be looked at."""
_BLOCK = 512
"""Bytes of the unit of `st_blocks`, whatever the block size of the file system is."""
_OPEN = 128
"""Directories that one walk keeps open. One is open for each level of which more is to be looked at."""
_PIECE = 200
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def measuring(root: Path) -> BlockingWork[Use]:
    """Return what is below `root`, without `root` itself; yields often. Raises `OSError` if `root` cannot be opened.

    It follows no link, and opens nothing but directories, each in the one above. What disappears meanwhile is not
    counted. Files with several names count once.
    """
    walk = _Walk()
    fd = os.open(root, _DIRECTORY)
    ahead: list[tuple[int, list[str]]] = []
    try:
        while fd >= 0:
            names = yield from walk.look(fd)
            if names and len(ahead) < _OPEN:
                ahead.append((fd, names))
            else:
                walk.files += TOO_DEEP if names else 0
                os.close(fd)
            fd = -1
            while ahead and fd < 0:
                fd = _next(ahead)
    finally:
        for left in (fd, *(parent for parent, _names in ahead)):
            if left >= 0:
                os.close(left)
    return Use(walk.blocks * _BLOCK, walk.files)


def _next(ahead: list[tuple[int, list[str]]]) -> int:
    """Open the next directory, or return -1 if it cannot be opened. A directory that has no more is closed first.

    So a long chain of directories keeps few of them open.
    """
    parent, names = ahead[-1]
    try:
        return os.open(names.pop(), _DIRECTORY, dir_fd=parent)
    except OSError:  # removed or replaced meanwhile; or not permitted to a server that is not root
        return -1
    finally:
        if not names:
            os.close(parent)
            ahead.pop()


class _Walk:
    def __init__(self) -> None:
        self.blocks = self.files = 0
        self._several: set[tuple[int, int]] = set()
        """Files with several names that were counted."""

    def look(self, fd: int) -> BlockingWork[list[str]]:
        """Count the entries of an open directory; return the names of those that are directories."""
        directories: list[str] = []
        with contextlib.suppress(OSError), os.scandir(fd) as entries:
            for count, entry in enumerate(entries, 1):
                with contextlib.suppress(OSError):
                    if self._count(entry.stat(follow_symlinks=False)):
                        directories.append(entry.name)
                if count % _PIECE == 0:
                    yield
        yield
        return directories

    def _count(self, found: os.stat_result) -> bool:
        """Count one entry; return whether it is a directory."""
        directory = stat.S_ISDIR(found.st_mode)
        if found.st_nlink > 1 and not directory:
            file = (found.st_dev, found.st_ino)
            if file in self._several:
                return False
            self._several.add(file)
        self.files += 1
        self.blocks += found.st_blocks
        return directory


def deleted_but_open(uid: int, device: int) -> Use:
    """Return what a user's processes hold open on a device although it has no name any more; blocking.

    What they have only mapped is not seen. Processes that this one may not look at count nothing.
    """
    found = {held.st_ino: held.st_blocks for held in _held(uid) if held.st_dev == device and not held.st_nlink}
    return Use(sum(found.values()) * _BLOCK, len(found))


def _held(uid: int) -> Iterator[os.stat_result]:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            fds = os.listdir(process / "fd") if _is_of(process, uid) else ()  # noqa: PTH208  only the names
        except OSError:
            continue
        for fd in fds:
            with contextlib.suppress(OSError):
                held = os.stat(process / "fd" / fd)  # noqa: PTH116  of what is open, which has no path
                if stat.S_ISREG(held.st_mode):
                    yield held


def _is_of(process: Path, uid: int) -> bool:
    owner = process.stat().st_uid
    if owner != 0:
        return owner == uid
    # It is root's, or has forbidden to be dumped: then its directory belongs to root.
    lines = (process / "status").read_text(errors="replace").splitlines()
    return any(line.startswith("Uid:") and line.split()[1] == str(uid) for line in lines)
