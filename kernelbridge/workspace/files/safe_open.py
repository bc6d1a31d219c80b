"""Reach into a directory that hostile code changes at the same time.

The workspace's files belong to code that nobody trusts: between any two system calls it may put a symbolic
link where a directory was, or move directories about. So no path is ever given to the
kernel whole. A walk opens one component after the other, each relative to the descriptor of the one before and none
through a symbolic link. A descriptor stays the directory that it was opened on,
and the sandbox cannot move one out of the workspace, which is all that it has mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernelbridge.errors import FileError, IsDirectory, NoSuchFile, NotADirectory, NotAFile
from kernelbridge.workspace.files.syscalls import rename_new

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

NO_SUCH_FILE = "there is no such file"

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

    def __init__(self, text: str, kind: type[FileError]) -> None:
        super().__init__(text)
        self.kind = kind


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
def directory(root: Path, parts: Sequence[str], owner: Owner | None = None) -> Iterator[int]:
    """Open the directory `parts` below `root` and close it afterwards; an owner is given what is missing.

    Raises `PathRefusedError` where a component is no directory or, without an owner, missing, and `OSError`.
    """
    try:
        fd = os.open(root, _DIRECTORY)
    except FileNotFoundError as exc:
        raise PathRefusedError(NO_SUCH_FILE, NoSuchFile) from exc
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


@contextlib.contextmanager
def regular_file(fd: int, name: str) -> Iterator[int]:
    """Open the file `name` in the directory `fd` for reading and close it afterwards; waits for nothing.

    What it is, is looked at before it is opened: a device does something when it is opened, and a FIFO waits. Raises
    `PathRefusedError` for what is no regular file, and `OSError`.
    """
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError as exc:
        raise PathRefusedError(NO_SUCH_FILE, NoSuchFile) from exc
    try:
        mode = os.fstat(found).st_mode
        if not stat.S_ISREG(mode):
            raise PathRefusedError(f"it is {kind(mode)}", IsDirectory if stat.S_ISDIR(mode) else NotAFile)
        # Not blocking: the sandbox could hold a lease on the file, which an open waits for.
        file = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        yield file
    finally:
        os.close(file)


def rename_unless_exists(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    """Rename like `os.rename`, but replace nothing: raises `FileExistsError` if there is something, and `OSError`."""
    try:
        rename_new(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # A file system that cannot do it in one step, such as NFS: looked at first, which is nearly as good.
        if mode_of(dst_dir_fd, target) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from exc
        os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


def _enter(fd: int, name: str, path: str, owner: Owner | None) -> int:
    made = False
    try:
        return open_directory(fd, name, path)
    except FileNotFoundError as exc:
        if owner is None:
            raise PathRefusedError(f"there is no directory {path!r}", NoSuchFile) from exc
        # Somebody else may be making it at this moment, which is as good.
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=fd)
            made = True
    below = open_directory(fd, name, path)
    try:
        if made:
            owner.give(below, 0o755)
            os.fsync(fd)
    except BaseException:
        os.close(below)
        raise
    return below


def open_directory(fd: int, name: str, path: str) -> int:
    """Open the directory `name` in the directory `fd`; `path` is what it is called in a refusal.

    Raises `PathRefusedError` for what is no directory, and `OSError`.
    """
    try:
        return os.open(name, _DIRECTORY, dir_fd=fd)
    except NotADirectoryError as exc:
        # Asked only for the sake of the text: the refusal stands whatever is there by now.
        found = mode_of(fd, name)
        what = "not a directory" if found is None or stat.S_ISDIR(found) else kind(found)
        raise PathRefusedError(f"{path!r} is {what}; a file's parents must be real directories", NotADirectory) from exc
