"""A workspace's files as the bridge writes them: whole or not at all, and never outside.

A save writes a temporary file beside the target, makes it durable and renames it over the target. The target
itself is never opened: a symbolic link, FIFO, device or hard link there is replaced as
a name, and what it leads to is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kernelbridge.errors import BadRequest, FileError
from kernelbridge.workspace.dirfd import Owner, PathRefusedError, directory, mode_of

_NAME_MAX = 255
_PATH_MAX = 4096
_NEW_FILE = 0o644
_PERMISSIONS = 0o777
"""What a new version keeps of the old one's mode; set-user-ID and the like are not for a bridge to hand out."""

_REASONS = {
    errno.ENOSPC: "the disk that holds the workspace is full; delete files and save again",
    errno.EDQUOT: "the disk quota of the workspace is used up; delete files and save again",
    errno.EROFS: "the workspace is on a read-only file system",
    errno.EACCES: "permission denied: make its directory writable with chmod and save again",
    errno.EPERM: "the operation is not permitted here",
    errno.ENOENT: "its directory was removed or renamed at the same moment; save again",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EFBIG: "the file is larger than the file system takes",
    errno.EIO: "the disk reported an input/output error",
    errno.EISDIR: "a directory of that name exists; remove it or choose another name",
}


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written."""

    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal."""


class WorkspaceFiles:
    """Writes below `root`, on behalf of the sandbox's user. Blocking, and safe to call from several threads."""

    def __init__(self, root: Path, *, uid: int, gid: int, max_bytes: int) -> None:
        self._root = root
        self._owner = Owner(uid, gid)
        self._max_bytes = max_bytes

    @property
    def root(self) -> Path:
        """The directory; what is below it belongs to hostile code: see `dirfd`."""
        return self._root

    @property
    def owner(self) -> Owner:
        """Whom new files belong to."""
        return self._owner

    def save(self, filename: str, data: bytes) -> Saved:
        """Write a file, durably; its parents are made and an old version's permission bits are kept.

        Raises `BadRequest` for a name that is not a relative path, and `FileError` when it cannot
        be written; the old version is then intact.
        """
        parts = relative_parts(filename)
        if len(data) > self._max_bytes:
            raise FileError(
                f"The file {filename!r} was not saved",
                f"it has {len(data)} bytes and the limit is {self._max_bytes}",
            )
        with _explained(f"The file {filename!r} was not saved"):
            self._write(parts, data, None)
        return Saved(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def write_private(self, path: str, data: bytes, mode: int) -> None:
        """Write a file of the bridge's own with these permission bits. Raises like `save`, without a limit."""
        with _explained(f"The file {path!r} was not written"):
            self._write(relative_parts(path), data, mode)

    def mkdir(self, path: str) -> None:
        """Make a directory and its parents; one that exists stays as it is. Raises like `save`."""
        with _explained(f"The directory {path!r} was not made"), self._directory(relative_parts(path)):
            pass

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link in place of any file at `path`; its target is not looked at. Raises like `save`."""
        *parents, name = relative_parts(path)
        with _explained(f"The link {path!r} was not made"), self._directory(parents) as fd, _temporary(fd) as part:
            _refuse_directory(mode_of(fd, name))
            os.symlink(target, part, dir_fd=fd)
            if os.geteuid() == 0:
                os.chown(part, self._owner.uid, self._owner.gid, dir_fd=fd, follow_symlinks=False)
            os.rename(part, name, src_dir_fd=fd, dst_dir_fd=fd)
            os.fsync(fd)

    def _write(self, parts: list[str], data: bytes, mode: int | None) -> None:
        *parents, name = parts
        with self._directory(parents) as fd, _temporary(fd) as part:
            old = mode_of(fd, name)
            _refuse_directory(old)
            if mode is None:
                mode = stat.S_IMODE(old) & _PERMISSIONS if old is not None and stat.S_ISREG(old) else _NEW_FILE
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(part, flags, 0o600, dir_fd=fd)
            try:
                _write_all(file, data)
                self._owner.give(file, mode)
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(part, name, src_dir_fd=fd, dst_dir_fd=fd)
            os.fsync(fd)

    def _directory(self, parts: list[str]) -> contextlib.AbstractContextManager[int]:
        return directory(self._root, parts, self._owner)


def relative_parts(path: str) -> list[str]:
    r"""Split a path inside the workspace into its components; raises `BadRequest` if it is not one.

    Slashes separate; backslashes and all else but NUL are ordinary characters. `.` and empty
    components inside mean nothing, as to any program.
    """
    try:
        encoded = path.encode()
    except UnicodeEncodeError as exc:
        raise _bad_name("it contains half of a surrogate pair, which has no UTF-8 form") from exc
    if not encoded:
        raise _bad_name("it is empty")
    if "\0" in path:
        raise _bad_name("it contains a NUL character")
    if len(encoded) > _PATH_MAX:
        raise _bad_name(f"it has {len(encoded)} bytes and the limit is {_PATH_MAX}")
    if path.startswith("/"):
        raise _bad_name("it is absolute; give a path relative to the workspace, without the leading '/'")
    *_, last = raw = path.split("/")
    if ".." in raw:
        raise _bad_name("it contains '..'; give a path that stays inside the workspace")
    if last in {"", "."}:
        raise _bad_name("it names a directory; give the name of a file, without a '/' at its end")
    parts = [part for part in raw if part not in {"", "."}]
    if any(len(part.encode()) > _NAME_MAX for part in parts):
        raise _bad_name(f"a name in it is longer than {_NAME_MAX} bytes")
    return parts


def _bad_name(reason: str) -> BadRequest:
    return BadRequest("The file name cannot be used", reason, field="filename", code="invalid_field")


def _refuse_directory(mode: int | None) -> None:
    if mode is not None and stat.S_ISDIR(mode):
        raise PathRefusedError(_REASONS[errno.EISDIR])


@contextlib.contextmanager
def _temporary(fd: int) -> Iterator[str]:
    """Give an unguessable hidden name in the directory `fd`; what has not been renamed away is removed."""
    name = f".{secrets.token_hex(16)}.part"
    try:
        yield name
    except BaseException:
        # The failure under way is the one to report; the sandbox may have taken the name away, or its directory.
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=fd)
        raise


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


@contextlib.contextmanager
def _explained(message: str) -> Iterator[None]:
    try:
        yield
    except PathRefusedError as exc:
        raise FileError(message, str(exc)) from exc
    except OSError as exc:
        number = exc.errno or 0
        raise FileError(message, _REASONS.get(number) or os.strerror(number)) from exc
