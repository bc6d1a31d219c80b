"""The file of the audit log: it only grows by whole lines, and follows its name when somebody rotates it. Blocking."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

MODE = 0o600
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Without O_NONBLOCK, opening a pipe that nobody reads would wait forever."""


class LogFile:
    """The file at `path`, which is made with mode 0600 if it is absent. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises `OSError`."""
        self._path = path
        self._fd = os.open(path, _FLAGS, MODE)

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Append lines; return how many were written whole, and why the others were not.

        If a disk is full in the middle of a line, its beginning is removed again.
        """
        try:
            self._follow()
            before = os.fstat(self._fd)
        except OSError as exc:
            return 0, exc
        data = b"".join(lines)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, memoryview(data)[written:])
        except OSError as exc:
            whole = data.rfind(b"\n", 0, written) + 1
            if written > whole and stat.S_ISREG(before.st_mode):
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, before.st_size + whole)
            return data.count(b"\n", 0, whole), exc
        return len(lines), None

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def _follow(self) -> None:
        """Open the file anew if its name leads to another one, or to none. Raises `OSError`.

        While it cannot be made anew, the old one is written on: that loses nothing.
        """
        own = os.fstat(self._fd)
        try:
            there = self._path.stat()
        except OSError:
            there = None
        if there is not None and (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
            return
        with contextlib.suppress(OSError):
            fd = os.open(self._path, _FLAGS, MODE)
            os.close(self._fd)
            self._fd = fd
