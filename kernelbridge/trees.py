"""Removing directories that a hostile user filled: of any depth, without recursion, following no link."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Generator
from errno import EBUSY, EEXIST, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY, EXDEV
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STEPS = 200_000
"""After removing so many names, it is assumed that somebody keeps adding more."""
_ROUNDS = 100
"""How often a directory may be found filled again, for the same reason."""
_FILLED = frozenset({ENOTEMPTY, EEXIST})
_CHANGED = frozenset({ENOENT, ENOTDIR, ELOOP})
"""Of a directory that somebody has removed or replaced meanwhile. The next round sees what is there then."""
_REFILLED = "it is filled as fast as it is emptied"
_PIECE = 100
"""Names between two yields."""


def remove_tree(path: Path) -> None:
    """Remove a directory and everything in it. One that does not exist is fine; otherwise raises `OSError`.

    Inner directories are first moved up into `path`, so neither the stack nor the number of descriptors grows with the
    depth. What a process adds meanwhile is removed too, and what it removes meanwhile is no error.
    """
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        for _ in range(_ROUNDS):
            for _ in emptying(top):
                pass
            try:
                if _rmdir(path):
                    return
            except FileNotFoundError:  # somebody else has removed it
                return
    finally:
        os.close(top)
    raise OSError(EBUSY, _REFILLED)


def emptying(top: int, limit: int = _STEPS) -> Generator[None, None, None]:
    """Empty an open directory; yields often. Raises `OSError`, also after `limit` names."""
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
            try:
                _unlock(name, top)
                inner = os.open(name, _DIRECTORY, dir_fd=top)
            except OSError as exc:
                if exc.errno in _CHANGED:
                    continue
                raise
            try:
                if not (yield from _moving_up(inner, top)):
                    yield from emptying(inner, limit - steps)
            finally:
                os.close(inner)
            _remove(_rmdir, name, top)


def _moving_up(inner: int, top: int) -> Generator[None, None, bool]:
    """Remove the files of an open directory and move its directories into `top`.

    Return False if they cannot be moved: `inner` has a disk quota of its own, and `top` another one.
    """
    for count, entry in enumerate(os.listdir(inner), 1):
        if count % _PIECE == 0:
            yield
        if not _is_directory(entry, inner):
            _remove(os.unlink, entry, inner)
            continue
        try:
            _unlock(entry, inner)  # else it cannot be moved
            os.rename(entry, secrets.token_hex(16), src_dir_fd=inner, dst_dir_fd=top)
        except OSError as exc:
            if exc.errno == EXDEV:
                return False
            if exc.errno not in _CHANGED:
                raise
    return True


def _unlock(name: str, parent: int) -> None:
    """Give this user access to a directory without permissions, so that it can be emptied and moved; root has it."""
    if os.geteuid() == 0:
        return
    handle = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=parent)
    try:
        with contextlib.suppress(PermissionError):  # another user's; it may be accessible anyway
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
    finally:
        os.close(handle)


def _is_directory(name: str, parent: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(how: Callable[..., object], name: str, parent: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # it is gone already
        how(name, dir_fd=parent)


def _rmdir(path: str | Path, *, dir_fd: int | None = None) -> bool:
    """Remove a directory. Returns False if it is not empty, because something was added again."""
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except OSError as exc:
        if exc.errno not in _FILLED:
            raise
        return False
    return True
