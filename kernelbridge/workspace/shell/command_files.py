"""The files in which a workspace's shells are given what they read, and one in reserve for when the disk is full.

What fills a disk is removed with commands like any other, so these must not need room on it. The reserve is made when
the sandbox is, and keeps its size: what is shorter is followed by line feeds, which mean nothing to a shell.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from kernelbridge.errors import TerminalError
from kernelbridge.workspace.shell.script import POSIX_KEYS

_RESERVE = "reserve"
_SIZE = 16 << 10
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def prepare_directory(directory: Path) -> None:
    """Make what the shells of a new sandbox need in such a directory; blocking. Raises `OSError`."""
    make_reserve(directory)
    name, target = POSIX_KEYS  # now: a shell may have to start where there is no room for it
    (directory / name).symlink_to(target)


def make_reserve(directory: Path) -> None:
    """Make the reserve of a directory for such files; blocking. Raises `OSError`."""
    fd = os.open(directory / _RESERVE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, _SIZE)
    finally:
        os.close(fd)


def restore_reserve(directory: Path) -> None:
    """Make the reserve if it is not there: a server that was killed may have used it. Blocking; raises `OSError`."""
    with contextlib.suppress(FileExistsError):
        make_reserve(directory)


@contextlib.contextmanager
def handed_over(path: Path, data: bytes) -> Iterator[None]:
    """Let a shell read `data` in the file `path` while the context is open. Raises `TerminalError`."""
    try:
        reserved = _write(path, data)
    except OSError as exc:
        raise TerminalError("The terminal command was not run", f"it could not be handed over: {why(exc)}") from exc
    try:
        yield
    finally:
        if reserved:
            with contextlib.suppress(FileNotFoundError):  # the sandbox was closed meanwhile
                path.replace(path.with_name(_RESERVE))
        else:
            path.unlink(missing_ok=True)


def why(exc: OSError) -> str:
    """Say why a file that a shell should read could not be written, and what to do."""
    if exc.errno in _FULL:
        return "the disk of the server's data directory is full; delete files, with delete_file or a short command"
    return exc.strerror or str(exc)


def _write(path: Path, data: bytes) -> bool:
    """Write the file; says whether it is the reserve."""
    try:
        _put(path, data, os.O_CREAT | os.O_EXCL)
    except OSError as exc:
        path.unlink(missing_ok=True)
        if exc.errno not in _FULL or len(data) > _SIZE:
            raise
        try:
            path.with_name(_RESERVE).rename(path)
        except FileNotFoundError:
            raise exc from None
        try:
            _put(path, data.ljust(_SIZE, b"\n"), 0)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return True
    return False


def _put(path: Path, data: bytes, flags: int) -> None:
    # Not blocking: where the sandbox has the same user as the server, a FIFO could lie there.
    flags |= os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(path, "wb", opener=lambda name, _: os.open(name, flags, 0o600)) as file:
        file.write(data)
        os.fchmod(file.fileno(), 0o644)  # whatever the umask says: the sandbox's user has to read it
