"""Short names for socket directories, where sandboxes see the host's own paths: UNIX socket paths end at 107 bytes."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
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
        self._used: set[str] = set()

    def shorten(self, path: Path) -> tuple[str, Path | None]:
        """Return a short name of `path`, and the symlink that it goes through if it needs one."""
        plain = str(path.absolute())
        if len(os.fsencode(plain)) <= _SHORT:
            return plain, None
        link = (self._home() or self._make_home()) / secrets.token_hex(4)
        link.symlink_to(plain)
        self._used.add(link.name)
        return str(link), link

    def adopt(self, link: Path) -> None:
        """Keep a symlink that an earlier server made."""
        self._used.add(link.name)

    def leave(self, link: Path) -> None:
        """Have a symlink stay when this server ends."""
        self._used.discard(link.name)

    def release(self, link: Path) -> None:
        """Remove a symlink. Idempotent."""
        link.unlink(missing_ok=True)
        self._used.discard(link.name)

    def reclaim(self) -> None:
        """Remove what an earlier server left and nobody has adopted."""
        home = self._home()
        for link in [] if home is None else list(home.iterdir()):
            if link.name not in self._used:
                link.unlink()

    def close(self) -> None:
        """Remove what it made or adopted, and the directory if nothing else is in it. Idempotent."""
        home = self._home()
        if home is not None:
            for name in list(self._used):
                self.release(home / name)
            with contextlib.suppress(OSError):  # what another server shall find
                home.rmdir()
                self._note.unlink()

    def _home(self) -> Path | None:
        """Find the directory: what has its name may have come there since the machine was started, and be another's."""
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
