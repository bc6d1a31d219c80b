"""Listing a workspace's directories: bounded, however much is in them, and without following a link."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from msgspec import UNSET

from kernelbridge.aio.threads import BlockingWork
from kernelbridge.protocol.files import FileEntry
from kernelbridge.workspace.files.names import PATH_MAX, directory_parts, explained, is_temporary, visible_name
from kernelbridge.workspace.files.safe_open import PathRefusedError, directory

ENTRIES = 10_000
"""Entries of one list."""
_TEXT = 4 << 20
"""Bytes of their paths."""
_LOOKS = 200_000
"""Names and parents that are looked at for one list: a bound for huge and very deep trees."""
_PIECE = 200
"""Names between two yields."""

_KINDS: Mapping[int, Literal["file", "directory", "symlink", "other"]] = MappingProxyType(
    {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
)


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of a directory."""

    entries: list[FileEntry]
    """Sorted by path."""
    truncated: bool
    """Whether entries are missing."""


def listing(
    root: Path, path: str, *, recursive: bool, hidden: bool, limit: int = ENTRIES, max_looks: int = _LOOKS
) -> BlockingWork[Listing]:
    """List a directory, with `recursive` everything below it; if it is too much, the deepest entries are left out.

    Raises `BadRequest`, and `FileError` or a subclass of it.
    """
    top = directory_parts(path, "path")
    walk = _Walk(root, hidden=hidden, limit=limit, looks=max_looks)
    with explained(f"The directory {path!r} was not listed"):
        yield from walk.enter(top)
    while recursive and walk.below and not walk.full:
        # It was removed meanwhile, or replaced by a link.
        with contextlib.suppress(OSError, PathRefusedError):
            yield from walk.enter(walk.below.popleft())
    walk.entries.sort(key=lambda entry: entry.path)
    return Listing(walk.entries, walk.full)


class _Walk:
    """One walk through a tree, directory by directory."""

    def __init__(self, root: Path, *, hidden: bool, limit: int, looks: int) -> None:
        self._root = root
        self._hidden = hidden
        self._limit = limit
        self._text = _TEXT
        self._looks = looks
        self.entries: list[FileEntry] = []
        self.below: deque[list[str]] = deque()
        self.full = False

    def enter(self, parts: list[str]) -> BlockingWork[None]:
        """Add the entries of one directory. Raises `PathRefusedError` and `OSError`."""
        self._looks -= len(parts)
        with directory(self._root, parts) as fd:
            names = yield from self._names(fd)
            for count, name in enumerate(names, 1):
                if self.full:
                    return
                with contextlib.suppress(FileNotFoundError):
                    self._add([*parts, name], os.stat(name, dir_fd=fd, follow_symlinks=False))
                if count % _PIECE == 0:
                    yield

    def _names(self, fd: int) -> BlockingWork[list[str]]:
        names: list[str] = []
        with os.scandir(fd) as found:
            for entry in found:
                self._looks -= 1
                if self._looks < 0:
                    self.full = True
                    break
                if (self._hidden or not entry.name.startswith(".")) and not is_temporary(entry.name):
                    names.append(entry.name)
                if self._looks % _PIECE == 0:
                    yield
        return sorted(names)

    def _add(self, parts: list[str], found: os.stat_result) -> None:
        path = "/".join(map(visible_name, parts))
        length = len(path.encode())
        self._text -= length
        if len(self.entries) >= self._limit or self._text < 0:
            self.full = True
            return
        if length > PATH_MAX:
            self.full = True  # no request can name it or anything below it
            return
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "other")
        self.entries.append(
            FileEntry(
                path=path,
                kind=kind,
                size=found.st_size if kind == "file" else UNSET,
                modified=_time(found.st_mtime),
            )
        )
        if kind == "directory":
            self.below.append(parts)


def _time(seconds: float) -> str:
    """Return a time in UTC, RFC 3339; a time outside the calendar becomes the first or the last in it."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        moment = datetime.max.replace(tzinfo=UTC) if seconds > 0 else datetime.min.replace(tzinfo=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
