"""Changing the owner of all files of a session, while nothing runs in it.

It is necessary when the user of the session's sandboxes has changed: by an update, another image, another setting. The
owner of the top directory changes last: if the server ends meanwhile, the next start of a sandbox completes the work.
"""

from __future__ import annotations

import os
import stat
from errno import EBUSY
from pathlib import Path

from kernelbridge.aio.threads import BlockingWork

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 100
"""Names between two yields."""


def change_owner(root: Path, uid: int, gid: int) -> BlockingWork[None]:
    """Change the owner of a directory and everything in it; no link is followed. Raises `OSError`.

    One directory is open at a time, however deep the tree is.
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
                    raise OSError(EBUSY, "its directories were moved meanwhile", str(root))
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
