"""When a change of the operator's files takes effect: tokens, keys and certificates, while the server runs."""

from __future__ import annotations

from pathlib import Path

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


def _signature(path: Path) -> _Signature | None:
    """Return what changes when the file does; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as exc:
        return (exc.errno or 0,)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
