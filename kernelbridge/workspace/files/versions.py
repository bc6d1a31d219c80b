"""New versions of a file: written beside it, made durable, and then put in its place under a condition.

The old file is never opened for writing. If it is a symbolic link, FIFO, device or hard link, its name is replaced, and
its target stays unchanged. All code that changes the files of one session shares one `Commits`.
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
from kernelbridge.workspace.files.safe_open import (
    NO_SUCH_FILE,
    Owner,
    PathRefusedError,
    mode_of,
    regular_file,
    rename_unless_exists,
)

CHUNK = 1 << 20
"""Bytes of one read or write."""
_NEW_FILE = 0o644
_PERMISSIONS = 0o777
"""Bits of the old version's mode that the new one keeps: not set-user-ID, set-group-ID or sticky."""
_DIRTY = 64 << 20
"""Bytes after which an upload is flushed to the disk, so that the flush at its end is short."""


class Commits:
    """The lock under which changes to one session's files take effect, as a context manager. Blocking; thread-safe.

    It belongs to one directory: if the directory is deleted and made again, the new one has another lock. Entering
    raises `FileNotFoundError` if the directory has been deleted.
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
        """Whether the whole directory has been deleted. Blocking: waits for a deletion that is under way."""
        # The caller may have seen the effect of that deletion already.
        with self._lock:
            return self._deleted

    @contextlib.contextmanager
    def deletion(self) -> Iterator[None]:
        """Hold the lock while the directory is deleted; blocking."""
        with self:
            yield
            self._deleted = True

    def explain(self, failure: FileError) -> FileError:
        """Return the error to report for a failure: another one if the cause is the deletion. Blocking."""
        if not self.deleted:
            return failure
        return FilesDeleted(
            failure.message,
            "the session was closed and its files were deleted meanwhile;"
            " send the request again to use the new, empty session",
        )


@dataclass(frozen=True, slots=True)
class Saved:
    """The result of a save."""

    size: int
    """Bytes of the whole file."""
    sha256: str
    """Of the whole file; lower-case hexadecimal."""
    version: str
    """See `version`."""
    created: bool
    """Whether no file had that name before."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold before a new version replaces the present file."""

    absent: bool = False
    """Nothing has that name."""
    versions: frozenset[str] | None = None
    """The present file has one of these versions; empty: any file is present."""
    sha256: frozenset[str] = frozenset()
    """Or its content has one of these hashes."""

    @property
    def needs_file(self) -> bool:
        """Whether a file must be present."""
        return self.versions is not None or bool(self.sha256)


def version(found: os.stat_result) -> str:
    """Return a name for the content of a file, made of its inode's fields; it differs after every change."""
    return f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"


def digest(fd: int) -> BlockingWork[str]:
    """Return the SHA-256 of an open file, in lower-case hexadecimal."""
    found = hashlib.sha256()
    at = 0
    while data := os.pread(fd, CHUNK, at):
        found.update(data)
        at += len(data)
        yield
    return found.hexdigest()


class NewVersion:
    """The next content of one file, made by `new_version`. Blocking; for one thread at a time."""

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
        """Append data. Raises `OSError`."""
        self._sha256.update(data)
        self.size += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        if self.size - self._written_out > _DIRTY:
            self._written_out = self.size
            os.fdatasync(self._fd)

    def commit(self, condition: Condition, mode: int | None = None) -> Saved:
        """Make it durable and put it in its place, with the permission bits `mode` or those of the old file.

        Raises `PathRefusedError` if the condition does not hold, and `OSError`.
        """
        old = mode_of(self._directory, self._name)
        refuse_directory(old)
        if mode is None:
            mode = stat.S_IMODE(old) & _PERMISSIONS if old is not None and stat.S_ISREG(old) else _NEW_FILE
        self._owner.give(self._fd, mode)
        os.fsync(self._fd)
        # The server itself makes no change between the check and the rename.
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
        """Close the file, and remove it if it was not committed."""
        os.close(self._fd)
        if not self._committed:
            # Another error may be under way, which matters more; the sandbox may have removed the name.
            with contextlib.suppress(OSError):
                os.unlink(self._part, dir_fd=self._directory)

    def _check(self, versions: frozenset[str]) -> None:
        try:
            found = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError as exc:
            raise PathRefusedError("the file does not exist any more", FileConflict) from exc
        if not stat.S_ISREG(found.st_mode):
            raise PathRefusedError("it is not a file any more", FileConflict)
        if versions and version(found) not in versions:
            raise PathRefusedError("it was changed at the same moment; read it again", FileConflict)


@contextlib.contextmanager
def new_version(directory: int, name: str, owner: Owner, commits: Commits) -> Iterator[NewVersion]:
    """Start a new version of the file `name` in an open directory; without a commit, nothing of it remains.

    Raises `PathRefusedError` for a directory, and `OSError`.
    """
    refuse_directory(mode_of(directory, name))
    new = NewVersion(directory, name, owner, commits)
    try:
        yield new
    finally:
        new.close()


def checked(directory: int, name: str, condition: Condition) -> BlockingWork[Condition]:
    """Check a condition against the present file; return it with the file's version instead of hashes.

    Raises `PathRefusedError` if it does not hold.
    """
    found = mode_of(directory, name)
    if condition.absent and found is not None:
        raise PathRefusedError("a file or directory has that name; choose another name, or overwrite it", FileExists)
    if not condition.needs_file:
        return condition
    refuse_directory(found)
    if found is None:
        raise PathRefusedError(NO_SUCH_FILE, FileConflict)
    if not stat.S_ISREG(found):
        raise PathRefusedError("it is a link or a special file, and not a regular file", FileConflict)
    with regular_file(directory, name) as fd:
        present = version(os.fstat(fd))
        if condition.versions is not None and (not condition.versions or present in condition.versions):
            return condition
        sha256 = (yield from digest(fd)) if condition.sha256 else None
        if sha256 is None or sha256 not in condition.sha256:
            known = f" (the present sha256 is {sha256})" if sha256 else ""
            raise PathRefusedError(f"another client or program changed it{known}; read it again", FileConflict)
    return Condition(versions=frozenset({present}))


def refuse_directory(mode: int | None) -> None:
    """Raise `PathRefusedError` for the mode of a directory."""
    if mode is not None and stat.S_ISDIR(mode):
        raise PathRefusedError(IS_DIRECTORY, IsDirectory)
