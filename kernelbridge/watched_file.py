"""Files of the operator's that may change while the server runs: tokens, keys, secrets for hosts, certificates."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from kernelbridge.errors import ConfigError

log = structlog.get_logger(__name__)

T = TypeVar("T")

LARGEST = 4 << 20
"""Bytes."""
REFRESH_SECONDS = 2.0
_OTHERS = 0o077


_Signature = tuple[int, ...]


class FileChanges:
    """Looks whether files have changed. Every method blocks.

    A change counts when it has lasted from one look to the next: an editor that writes a file in place leaves half of
    it there for a moment, and a program that renews two files does so one after the other.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._current = self._seen = self._signatures()

    @property
    def missing(self) -> bool:
        """Whether one of the files was absent when the last change was noticed."""
        return None in self._current

    def settled(self) -> bool:
        """Look at the files; return whether a change has lasted. It is returned once."""
        before, self._seen = self._seen, self._signatures()
        if self._seen == self._current or self._seen != before:
            return False
        self._current = self._seen
        return True

    def _signatures(self) -> tuple[_Signature | None, ...]:
        return tuple(_signature(path) for path in self._paths)


class WatchedFile(Generic[T]):
    """A file that is read again when it has changed. `refresh` blocks; `value` may be read from any thread.

    When a change takes effect: see `FileChanges`; nobody may be logged out because an editor is writing. A file that
    cannot be used any more (a mistake in it, wrong permissions) changes nothing, and the log says so. One that was
    removed counts as empty.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], T], *, empty: T, secret: bool, setting: str) -> None:
        """Read the file. `parse` raises `ValueError`; with `secret`, nobody else may read the file.

        Raises `ConfigError`, with `setting` in it.
        """
        self._path = path
        self._parse = parse
        self._empty = empty
        self._secret = secret
        self._setting = setting
        self._changes = FileChanges(path)
        self.value: T = self._read()

    def refresh(self) -> None:
        """Read the file again if it has changed; blocking. Never raises for what is wrong with it."""
        if not self._changes.settled():
            return
        if self._changes.missing:
            self.value = self._empty
            log.error("credentials_removed", path=str(self._path), detail="they are no longer in force")
            return
        try:
            self.value = self._read()
        except ConfigError as exc:
            # Without the traceback: the operator made a mistake, not the server.
            log.error("credentials_not_reloaded", reason=str(exc), detail="the earlier ones stay in force")  # noqa: TRY400
        else:
            log.info("credentials_reloaded", path=str(self._path))

    def _read(self) -> T:
        try:
            data = read_private(self._path) if self._secret else _read_bounded(self._path)
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise ConfigError(f"{self._setting}: {str(self._path)!r} cannot be used", reason) from exc
        try:
            return self._parse(data)
        except ValueError as exc:
            raise ConfigError(f"{self._setting}: {str(self._path)!r} cannot be used", str(exc)) from exc


@contextlib.asynccontextmanager
async def refreshed(files: Iterable[WatchedFile[T]]) -> AsyncIterator[None]:
    """While the context is open, read those files again that have changed, in a thread of its own."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="watched-files")
    refreshing = asyncio.get_running_loop().create_task(_refresh(list(files), thread))
    try:
        yield
    finally:
        refreshing.cancel()
        await asyncio.wait([refreshing])
        thread.shutdown(wait=False)


async def _refresh(files: list[WatchedFile[T]], thread: ThreadPoolExecutor) -> None:
    while files:
        await asyncio.sleep(REFRESH_SECONDS)
        for file in files:
            try:
                await asyncio.get_running_loop().run_in_executor(thread, file.refresh)
            except Exception:  # a bug: the next look may succeed, and without one no new secret would count
                log.exception("refresh_failed")


def read_private(path: Path) -> bytes:
    """Read a file that only its owner may read, who is this user or root. Raises `OSError`."""
    return _read_bounded(path, check_private)


def check_private(descriptor: int) -> None:
    """Raise `OSError` for what is no file, or one that others can read or change."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it is not a file; name a regular file")
    if found.st_mode & _OTHERS:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise PermissionError(0, f"other users may read or change it (mode {mode}); run chmod 600 on it")
    if found.st_uid not in {0, os.geteuid()}:
        raise PermissionError(0, "it belongs to another user, who can change it; run chown on it")


def _read_bounded(path: Path, check: Callable[[int], None] = lambda _descriptor: None) -> bytes:
    # Without O_NONBLOCK, a FIFO would never open.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a file; name a regular file")
        check(descriptor)
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(0, f"it is larger than {LARGEST} bytes; name another file")
    return data


def _signature(path: Path) -> _Signature | None:
    """Return what changes when the file does; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as exc:
        return (exc.errno or 0,)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
