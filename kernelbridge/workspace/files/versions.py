"""New versions of a file: written beside it, made durable, and then put in its place under a condition.

The target itself is never opened for writing: a symbolic link, FIFO, device or hard link there is replaced as
a name, and what it leads to is left alone. `Commits` is what all that change one session's files share.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from types import TracebackType

from kernelbridge.aio.threads import BlockingWork
from kernelbridge.errors import FileConflict, FileError, FileExists, FilesDeleted, IsDirectory
from kernelbridge.workspace.files.names import IS_DIRECTORY, temporary_name
from kernelbridge.workspace.files.safe_open import Owner, PathRefusedError, mode_of, regular_file, rename_unless_exists

CHUNK = 1 << 20
"""Bytes that are read or written at a time."""
_NEW_FILE = 0o644
_PERMISSIONS = 0o777
"""What a new version keeps of the old one's mode; set-user-ID and the like are not for a bridge to hand out."""
_DIRTY = 64 << 20
"""Bytes after which what was written is sent to the disk, so that the last of it does not take long."""


class Commits:
    """Entered while something takes its place, from any thread; blocking.

    It belongs to one making of a session's directory: what is deleted and made again has another. Raises
    `FileNotFoundError` when that directory has been deleted.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._deleted = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._deleted:
            self._lock.release()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    @property
    def deleted(self) -> bool:
        """Whether the files have been deleted as a whole: what is there now, if anything, are others. Blocking."""
        # Who has seen that they are gone must hear why, so a deletion that is under way is waited for.
        with self._lock:
            return self._deleted

    @contextlib.contextmanager
    def deletion(self) -> Iterator[None]:
        """Be entered while the directory goes away, and take note that it has; blocking."""
        with self:
            yield
            self._deleted = True

    def told(self, failure: FileError) -> FileError:
        """Give what is to be told of a failure: another one if it comes of the deletion. Blocking."""
        if not self.deleted:
            return failure
        return FilesDeleted(
            failure.message,
            "the session was closed and its files were deleted meanwhile;"
            " send the request again, and it finds the session empty",
        )


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written."""

    size: int
    """Bytes of the whole file."""
    sha256: str
    """Of the whole file; lower-case hexadecimal."""
    version: str
    """See `version`."""
    created: bool
    """Whether there was no file of that name."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Under which a new version may take its place."""

    absent: bool = False
    """There is nothing of that name."""
    versions: frozenset[str] | None = None
    """The file is one of these versions; empty for any that is there."""
    sha256: frozenset[str] = frozenset()
    """Or its content has one of these hashes."""

    @property
    def needs_file(self) -> bool:
        """Whether there must be a file."""
        return self.versions is not None or bool(self.sha256)


def version(found: os.stat_result) -> str:
    """Name what a file holds, as far as its inode tells: another name after every change."""
    return f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"


def digest(fd: int) -> BlockingWork[str]:
    """Hash an open file from its beginning."""
    found = hashlib.sha256()
    at = 0
    while data := os.pread(fd, CHUNK, at):
        found.update(data)
        at += len(data)
        yield
    return found.hexdigest()


class NewVersion:
    """The next content of one file. Use it with `new_version`; blocking, for one thread at a time."""

    def __init__(self, directory: int, name: str, owner: Owner, commits: Commits) -> None:
        self._directory = directory
        self._name = name
        self._owner = owner
        self._commits = commits
        self._part = temporary_name()
        self._sha256 = hashlib.sha256()
        self._written_out = 0
        self._committed = False
        self.size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._part, flags, 0o600, dir_fd=directory)

    def write(self, data: bytes | bytearray) -> None:
        """Add to it."""
        self._sha256.update(data)
        self.size += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        if self.size - self._written_out > _DIRTY:
            self._written_out = self.size
            os.fdatasync(self._fd)

    def commit(self, condition: Condition, mode: int | None = None) -> Saved:
        """Make it durable and put it in its place, with the old one's permission bits or `mode`.

        Raises `PathRefusedError` when the condition does not hold, and `OSError`.
        """
        old = mode_of(self._directory, self._name)
        refuse_directory(old)
        if mode is None:
            mode = stat.S_IMODE(old) & _PERMISSIONS if old is not None and stat.S_ISREG(old) else _NEW_FILE
        self._owner.give(self._fd, mode)
        os.fsync(self._fd)
        # Held for a moment only, so that nothing that the bridge does falls between the look and the rename.
        with self._commits:
            if condition.versions is not None:
                self._check(condition.versions)
            rename = rename_unless_exists if condition.absent else os.rename
            rename(self._part, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            self._committed = True
            written = os.fstat(self._fd)  # a rename changes its times
        os.fsync(self._directory)
        return Saved(self.size, self._sha256.hexdigest(), version(written), old is None)

    def close(self) -> None:
        """Close the file, and take back what was not committed."""
        os.close(self._fd)
        if not self._committed:
            # Another failure may be under way, which is the one to tell; the sandbox may have taken the name away.
            with contextlib.suppress(OSError):
                os.unlink(self._part, dir_fd=self._directory)

    def _check(self, versions: frozenset[str]) -> None:
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError as exc:
            raise PathRefusedError("there is no such file any more", FileConflict) from exc
        if not stat.S_ISREG(found.st_mode):
            raise PathRefusedError("it is not a file any more", FileConflict)
        if versions and version(found) not in versions:
            raise PathRefusedError("it was changed at the same moment; read it again", FileConflict)


@contextlib.contextmanager
def new_version(directory: int, name: str, owner: Owner, commits: Commits) -> Iterator[NewVersion]:
    """Begin a new version of the file `name` in an open directory; what is not committed leaves nothing.

    Raises `PathRefusedError` for a directory, and `OSError`.
    """
    refuse_directory(mode_of(directory, name))
    new = NewVersion(directory, name, owner, commits)
    try:
        yield new
    finally:
        new.close()


def settled(directory: int, name: str, condition: Condition) -> BlockingWork[Condition]:
    """Check a condition against the present file, and turn hashes into the version that has one of them.

    Raises `PathRefusedError` when it does not hold.
    """
    found = mode_of(directory, name)
    if condition.absent and found is not None:
        raise PathRefusedError("something of that name exists; choose another name, or overwrite it", FileExists)
    if not condition.needs_file:
        return condition
    refuse_directory(found)
    if found is None:
        raise PathRefusedError("there is no such file", FileConflict)
    if not stat.S_ISREG(found):
        raise PathRefusedError("it is not a file but a link or something special", FileConflict)
    with regular_file(directory, name) as fd:
        present = version(os.fstat(fd))
        if condition.versions is not None and (not condition.versions or present in condition.versions):
            return condition
        sha256 = (yield from digest(fd)) if condition.sha256 else None
        if sha256 is None or sha256 not in condition.sha256:
            known = f" (the present sha256 is {sha256})" if sha256 else ""
            raise PathRefusedError(f"it has been changed by somebody else{known}; read it again", FileConflict)
    return Condition(versions=frozenset({present}))


def refuse_directory(mode: int | None) -> None:
    """Raise `PathRefusedError` for the mode of a directory."""
    if mode is not None and stat.S_ISDIR(mode):
        raise PathRefusedError(IS_DIRECTORY, IsDirectory)
