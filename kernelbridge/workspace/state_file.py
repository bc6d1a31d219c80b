"""A small file that says what runs, for another server: overwritten in place, never made durable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


class StateFile:
    """A small file that is overwritten in place, for what changes with every cell or command.

    Nothing here raises: what cannot be written is given to `failed`.
    """

    def __init__(self, path: Path, *, failed: Callable[[OSError], None]) -> None:
        self._path = path
        self._failed = failed
        self._fd = -1

    def open(self) -> None:
        """Make the file, or find it; what is in it stays. Idempotent."""
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as exc:
                self._failed(exc)

    def write(self, content: bytes) -> None:
        """Overwrite its beginning, if it is open."""
        if self._fd >= 0:
            try:
                os.pwrite(self._fd, content, 0)
            except OSError as exc:
                self._failed(exc)

    def empty(self) -> None:
        """Forget what is in it, if it is open."""
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError as exc:
                self._failed(exc)

    def append(self, content: bytes, limit: int) -> bool:
        """Write behind what is in it, if it is open; no more than `limit` bytes in all. Say whether all of it fit."""
        if self._fd >= 0:
            try:
                size = os.fstat(self._fd).st_size
                os.pwrite(self._fd, content[: max(0, limit - size)], size)
                return size + len(content) <= limit
            except OSError as exc:
                self._failed(exc)
        return True

    def read(self) -> bytes:
        """Give what is in it, if it is open."""
        try:
            return os.pread(self._fd, os.fstat(self._fd).st_size, 0) if self._fd >= 0 else b""
        except OSError as exc:
            self._failed(exc)
            return b""

    def close(self) -> None:
        """Release it, and leave the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Release and remove it. Idempotent."""
        self.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
