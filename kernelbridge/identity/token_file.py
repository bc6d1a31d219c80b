"""Adds a line to the token file. The server reads it by `watched_file`."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kernelbridge.errors import ConfigError
from kernelbridge.watched_file import check_private


def add_token(path: Path, line: str) -> None:
    """Append a line, and make the file if it is absent; blocking. Raises `ConfigError`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            check_private(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # another `token new` may be adding a line
            before = file.read()
            start = b"" if not before or before.endswith(b"\n") else b"\n"
            # In one write: the server may read at any moment.
            os.write(descriptor, start + line.encode() + b"\n")
            os.fsync(descriptor)
    except OSError as exc:
        raise ConfigError(f"The token file {str(path)!r} cannot be written", exc.strerror or str(exc)) from exc
