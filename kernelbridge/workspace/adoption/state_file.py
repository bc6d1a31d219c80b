"""A small file that tells the next server what runs: overwritten in place, never made durable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


class StateFile:
    """A small file that is overwritten in place, for what changes with every cell or command. Blocking, briefly.

    No method raises: errors are passed to `failed`. Before `open`, and after `close`, nothing is written.
    """

    def __init__(self, path: Path, *, failed: Callable[[OSError], None]) -> None:
        self._path = path
        self._failed = failed
        self._fd = -1

    def open(self) -> None:
        """Open the file, and make it if necessary; its content stays. Idempotent."""
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as exc:
                self._failed(exc)

    def write(self, content: bytes) -> None:
        """Overwrite the beginning of the file."""
        if self._fd >= 0:
            try:
                os.pwrite(self._fd, content, 0)
            except OSError as exc:
                self._failed(exc)

    def empty(self) -> None:
        """Truncate the file."""
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError as exc:
                self._failed(exc)

    def append(self, content: bytes, limit: int) -> bool:
        """Append to the file, up to `limit` bytes in all; return False if the content did not fit."""
        if self._fd >= 0:
            try:
                size = os.fstat(self._fd).st_size
                os.pwrite(self._fd, content[: max(0, limit - size)], size)
                return size + len(content) <= limit
            except OSError as exc:
                self._failed(exc)
        return True

    def read(self) -> bytes:
        """Return the content of the file."""
        try:
            return os.pread(self._fd, os.fstat(self._fd).st_size, 0) if self._fd >= 0 else b""
        except OSError as exc:
            self._failed(exc)
            return b""

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Close and remove the file. Idempotent."""
        self.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
