"""Reach into a directory that hostile code changes at the same time.

The workspace's files belong to code that nobody trusts: between any two system calls it may put a symbolic
link where a directory was, or move directories about. So no path is ever given to the
kernel whole. A walk opens one component after the other, each relative to the descriptor of the one before and none
through a symbolic link. A descriptor stays the directory that it was opened on,
and the sandbox cannot move one out of the workspace, which is all that it has mounted.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class PathRefusedError(Exception):
    """What stands at a path is not what may stand there; the text says what does."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom new files and directories belong to: the sandbox's user."""

    uid: int
    gid: int

    def give(self, fd: int, mode: int) -> None:
        """Hand an open file or directory over and set its permission bits, whatever the umask says."""
        # Only root can give away; a bridge of the sandbox's own user has nothing to give.
        if os.geteuid() == 0:
            os.fchown(fd, self.uid, self.gid)
        os.fchmod(fd, mode)


@contextlib.contextmanager
def directory(root: Path, parts: Sequence[str], owner: Owner) -> Iterator[int]:
    """Open the directory `parts` below `root`, making what is missing, and close it afterwards.

    Raises `PathRefusedError` where a component is no directory, and `OSError`.
    """
    fd = os.open(root, _DIRECTORY)
    try:
        for depth, name in enumerate(parts, 1):
            below = _enter(fd, name, "/".join(parts[:depth]), owner)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def kind(mode: int) -> str:
    """Say what a file is, from its `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def mode_of(fd: int, name: str) -> int | None:
    """Give the `st_mode` of the entry `name` itself, or None if there is none; opens nothing."""
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _enter(fd: int, name: str, path: str, owner: Owner) -> int:
    made = False
    try:
        return _open(fd, name, path)
    except FileNotFoundError:
        # Somebody else may be making it at this moment, which is as good.
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=fd)
            made = True
    below = _open(fd, name, path)
    try:
        if made:
            owner.give(below, 0o755)
            os.fsync(fd)
    except BaseException:
        os.close(below)
        raise
    return below


def _open(fd: int, name: str, path: str) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=fd)
    except NotADirectoryError as exc:
        # Asked only for the sake of the text: the refusal stands whatever is there by now.
        found = mode_of(fd, name)
        what = "not a directory" if found is None or stat.S_ISDIR(found) else kind(found)
        raise PathRefusedError(f"{path!r} is {what}; a file's parents must be real directories") from exc
