"""A session that `kernelbridge shell` had opened and left: noted, so that the command that takes it up can end it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

from kernelbridge.cli.state import state_directory

_FORGOTTEN = 7 * 86_400.0
"""Seconds after which a note is deleted: no server lets a session linger for so long by default."""


class Left(NamedTuple):
    """What is known of a session that was left."""

    delete_files: bool
    """Whether its files end with it, because the user has not named it."""


class LeftSession:
    """The note about one session. It holds for the session that was opened at one moment, not for a later namesake.

    Without a place for it there is no note, and the session stays open as long as it was to.
    """

    def __init__(self, url: str, user: str | None, session_id: str) -> None:
        key = json.dumps([url, user, session_id]).encode()
        self._name = hashlib.sha256(key).hexdigest()[:32]

    def write(self, created: str, *, delete_files: bool) -> None:
        """Note that the session, which was opened at `created`, is left."""
        with contextlib.suppress(OSError):
            _prune(self._path.parent)
            self._path.write_text(json.dumps([created, delete_files]), encoding="ascii")

    def read(self, created: str) -> Left | None:
        """Return what is noted of a session that was opened at `created`, or None."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            noted, delete_files = json.loads(self._path.read_text(encoding="ascii"))
            return Left(bool(delete_files)) if noted == created else None
        return None

    def forget(self) -> None:
        """Delete the note. Idempotent."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    @property
    def _path(self) -> Path:
        directory = state_directory() / "left"
        directory.mkdir(exist_ok=True)
        return directory / self._name


def _prune(directory: Path) -> None:
    for note in directory.iterdir():
        if note.stat().st_mtime < time.time() - _FORGOTTEN:
            note.unlink()
