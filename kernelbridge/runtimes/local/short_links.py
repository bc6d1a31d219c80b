"""Short names for shared directories, for sandboxes without isolation: UNIX socket paths end at 107 bytes."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

_SHORT = 60
"""Bytes of the longest directory that leaves enough room for the name of a socket."""


class ShortLinks:
    """Symlinks in a temporary directory, which is made for the first one.

    `note` is a symlink to that directory, for the next server.
    """

    def __init__(self, note: Path) -> None:
        self._note = note
        self._used: set[str] = set()

    def shorten(self, path: Path) -> tuple[str, Path | None]:
        """Return a short name for `path`, and the symlink in it; None if `path` is short itself."""
        plain = str(path.absolute())
        if len(os.fsencode(plain)) <= _SHORT:
            return plain, None
        link = (self._home() or self._make_home()) / secrets.token_hex(4)
        link.symlink_to(plain)
        self._used.add(link.name)
        return str(link), link

    def adopt(self, link: Path) -> None:
        """Own a symlink that an earlier server made."""
        self._used.add(link.name)

    def leave(self, link: Path) -> None:
        """Keep a symlink when this server ends."""
        self._used.discard(link.name)

    def release(self, link: Path) -> None:
        """Remove a symlink. Idempotent."""
        link.unlink(missing_ok=True)
        self._used.discard(link.name)

    def reclaim(self) -> None:
        """Remove symlinks of an earlier server that were not adopted."""
        home = self._home()
        for link in [] if home is None else list(home.iterdir()):
            if link.name not in self._used:
                link.unlink()

    def close(self) -> None:
        """Remove the symlinks that it made or adopted, and the directory if it is empty then. Idempotent."""
        home = self._home()
        if home is not None:
            for name in list(self._used):
                self.release(home / name)
            with contextlib.suppress(OSError):  # it still has symlinks, for the next server
                home.rmdir()
                self._note.unlink()

    def _home(self) -> Path | None:
        """Return the directory, if it still is this user's: after a restart of the machine it may be another one."""
        if not self._note.is_symlink():
            return None
        home = self._note.readlink()
        with contextlib.suppress(OSError):
            found = home.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                return home
        return None

    def _make_home(self) -> Path:
        home = Path(tempfile.mkdtemp(prefix="kb-"))
        self._note.unlink(missing_ok=True)
        self._note.parent.mkdir(parents=True, exist_ok=True)
        self._note.symlink_to(home)
        return home
