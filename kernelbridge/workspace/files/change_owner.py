"""Giving all files of a session to another user, while nothing runs in it.

That is done when the user of its sandboxes has changed: with an update, another image, another setting. It is broken
off by the end of the server, perhaps; the top directory changes hands last, so the next start does the rest.
"""

from __future__ import annotations

import os
import stat
from errno import EBUSY
from pathlib import Path

from kernelbridge.aio.threads import BlockingWork

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 100
"""Names between two rests."""


def giving(root: Path, uid: int, gid: int) -> BlockingWork[None]:
    """Give the directory and all that is in it to a user, in pieces; no link is followed. Raises `OSError`.

    One directory is open at a time, however deep they are.
    """
    here = os.open(root, _DIRECTORY)
    try:
        above: list[tuple[tuple[int, int], list[str]]] = []
        names = os.listdir(here)  # noqa: PTH208  of a descriptor
        steps = 0
        while names or above:
            steps += 1
            if steps % _PIECE == 0:
                yield
            if not names:
                identity, names = above.pop()
                here = _moved(here, "..")
                if _identity(here) != identity:
                    raise OSError(EBUSY, "it is changed meanwhile", str(root))
                continue
            name = names.pop()
            os.chown(name, uid, gid, dir_fd=here, follow_symlinks=False)
            if stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                above.append((_identity(here), names))
                here = _moved(here, name)
                names = os.listdir(here)  # noqa: PTH208  of a descriptor
        os.fchown(here, uid, gid)
    finally:
        os.close(here)


def _moved(here: int, name: str) -> int:
    there = os.open(name, _DIRECTORY, dir_fd=here)
    os.close(here)
    return there


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
