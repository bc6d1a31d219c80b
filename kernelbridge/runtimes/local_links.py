"""Short names for socket directories, where sandboxes see the host's own paths: UNIX socket paths end at 107 bytes."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path

_SHORT = 60
"""Longest directory in which a socket's path still has room for the socket's name, in bytes."""


class ShortLinks:
    """Symlinks in a temporary directory, made when the first is needed.

    `note` is a symlink to that directory in the server's own: by it the next server finds what a killed one left.
    """

    def __init__(self, note: Path) -> None:
        self._note = note
        self._home: Path | None = None
        self._names = itertools.count(1)

    def shorten(self, path: Path) -> tuple[str, Path | None]:
        """Give a short name of `path`, and the symlink that it goes through if it needs one."""
        plain = str(path.absolute())
        if len(os.fsencode(plain)) <= _SHORT:
            return plain, None
        if self._home is None:
            self.close()
            home = Path(tempfile.mkdtemp(prefix="kb-"))
            self._home = home
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.symlink_to(home)
        link = self._home / str(next(self._names))
        link.symlink_to(plain)
        return str(link), link

    def reclaim(self) -> None:
        """Remove what a killed server left."""
        if self._home is None:
            self.close()

    def close(self) -> None:
        """Remove the directory and the note of it. Idempotent."""
        if self._note.is_symlink():
            shutil.rmtree(self._note.readlink(), ignore_errors=True)
            self._note.unlink()
        self._home = None
