"""Removing directories that a hostile user filled: any depth, no recursion, no link followed."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Generator
from errno import EBUSY, EEXIST, ENOTEMPTY
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STEPS = 200_000
"""Names after which somebody must be refilling it."""
_ROUNDS = 100
"""Times that a directory may be found filled again, for the same reason."""
_FILLED = frozenset({ENOTEMPTY, EEXIST})
_REFILLED = "it is filled as fast as it is emptied"
_PIECE = 100
"""Names between two rests."""


def remove_tree(path: Path) -> None:
    """Remove a directory and all that is in it; raises `OSError`, but not for one that does not exist.

    A directory inside another is first moved up into the first, so neither the stack nor the number of
    descriptors grows with the depth. What somebody adds meanwhile, who had it open, is removed with the rest.
    """
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        for _ in range(_ROUNDS):
            for _ in emptying(top):
                pass
            if _rmdir(path):
                return
    finally:
        os.close(top)
    raise OSError(EBUSY, _REFILLED)


def emptying(top: int, limit: int = _STEPS) -> Generator[None, None, None]:
    """Empty an open directory, in pieces; gives up after `limit` names. Raises `OSError`."""
    steps = 0
    while names := os.listdir(top):
        for name in names:
            steps += 1
            if steps > limit:
                raise OSError(EBUSY, _REFILLED)
            if steps % _PIECE == 0:
                yield
            if not _is_directory(name, top):
                _remove(os.unlink, name, top)
                continue
            _unlock(name, top)
            inner = os.open(name, _DIRECTORY, dir_fd=top)
            try:
                for count, entry in enumerate(os.listdir(inner), 1):  # noqa: PTH208  as above
                    if count % _PIECE == 0:
                        yield
                    if _is_directory(entry, inner):
                        _unlock(entry, inner)  # or it cannot be moved
                        os.rename(entry, secrets.token_hex(16), src_dir_fd=inner, dst_dir_fd=top)
                    else:
                        _remove(os.unlink, entry, inner)
            finally:
                os.close(inner)
            _remove(_rmdir, name, top)


def _unlock(name: str, parent: int) -> None:
    """Let this user empty and move a directory that its owner has closed to itself; root can anyway."""
    if os.geteuid() == 0:
        return
    handle = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=parent)
    try:
        with contextlib.suppress(PermissionError):  # somebody else's; perhaps it is open all the same
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
    finally:
        os.close(handle)


def _is_directory(name: str, parent: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(how: Callable[..., object], name: str, parent: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody else was faster
        how(name, dir_fd=parent)


def _rmdir(path: str | Path, *, dir_fd: int | None = None) -> bool:
    """Remove a directory; False if somebody has filled it again."""
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except OSError as exc:
        if exc.errno not in _FILLED:
            raise
        return False
    return True
