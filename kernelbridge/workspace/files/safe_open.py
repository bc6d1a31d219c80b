"""Opening files and directories that hostile code changes at the same time.

The code in a workspace is not trusted. Between any two system calls it can replace a directory by a symbolic link, or
move directories. So no whole path is ever passed to the kernel: a walk opens one component after the other, each
relative to the descriptor of the one before, and none through a symbolic link. A descriptor always refers to the
directory that was opened, and the sandbox cannot move a directory out of the workspace, which is all that it has
mounted.
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
    """A path leads to something that is not allowed there; the text says to what."""

    def __init__(self, text: str, kind: type[FileError]) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of new files and directories: the sandbox's user."""

    uid: int
    gid: int

    def give(self, fd: int, mode: int) -> None:
        """Change the owner of an open file or directory, and set its permission bits whatever the umask is."""
        # Only root can; another user runs the sandboxes as itself, and owns the files already.
        if os.geteuid() == 0:
            os.fchown(fd, self.uid, self.gid)
        os.fchmod(fd, mode)


@contextlib.contextmanager
def directory(root: Path, parts: Sequence[str], owner: Owner | None = None) -> Iterator[int]:
    """Open the directory `parts` below `root` and close it afterwards; with an owner, make what is missing.

    Raises `PathRefusedError` if a component is not a directory or, without an owner, is missing, and `OSError`.
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
    """Return what a file is, as text for a message, from its `st_mode`."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def mode_of(fd: int, name: str) -> int | None:
    """Return the `st_mode` of the entry `name` itself, or None if it does not exist; opens nothing."""
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def regular_file(fd: int, name: str) -> Iterator[int]:
    """Open the file `name` in the directory `fd` for reading and close it afterwards.

    Its type is checked before: opening a device has effects, and opening a FIFO waits. Raises `PathRefusedError` for
    anything but a regular file, and `OSError`.
    """
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError as exc:
        raise PathRefusedError(NO_SUCH_FILE, NoSuchFile) from exc
    try:
        mode = os.fstat(found).st_mode
        if not stat.S_ISREG(mode):
            raise PathRefusedError(f"it is {kind(mode)}", IsDirectory if stat.S_ISDIR(mode) else NotAFile)
        # Not blocking: the sandbox could hold a lease on the file, and an open would wait for its end.
        file = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)
    try:
        yield file
    finally:
        os.close(file)


def rename_unless_exists(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    """Rename like `os.rename`, but raise `FileExistsError` if the target exists; also raises `OSError`."""
    try:
        rename_new(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        # The file system cannot do it in one step (NFS): a check and a rename are nearly as good.
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
        # Another program may make it at this moment, which is as good.
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
    """Open the directory `name` in the directory `fd`; `path` is its name in error messages.

    Raises `PathRefusedError` if it is not a directory, and `OSError`.
    """
    try:
        return os.open(name, _DIRECTORY, dir_fd=fd)
    except NotADirectoryError as exc:
        # Only for the text of the error, which is raised whatever the name leads to by now.
        found = mode_of(fd, name)
        what = "not a directory" if found is None or stat.S_ISDIR(found) else kind(found)
        raise PathRefusedError(f"{path!r} is {what}; a file's parents must be real directories", NotADirectory) from exc
