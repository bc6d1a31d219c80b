"""Changes below a directory that hostile code changes: inotify, on directories opened one component at a time.

A watch of a path would follow symbolic links, and reveal names from outside (docs/explanation/decisions). So every
directory is opened without following a link, and the open directory is watched. Whether a name was added, modified or
deleted follows from whether it was known before and is known after a batch of events.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kernelbridge.aio.threads import BlockingWork
from kernelbridge.errors import FileError, LimitExceeded
from kernelbridge.workspace.files import syscalls as sys
from kernelbridge.workspace.files.names import HIDDEN_AREA, PATH_MAX, is_hidden, is_temporary
from kernelbridge.workspace.files.safe_open import PathRefusedError, directory

Change = Literal["added", "modified", "deleted"]

DIRECTORIES = 10_000
"""Directories that are watched for one session."""
NAMES = 200_000
"""Names in these directories."""
MOST = 5_000
"""Changes that one turn returns."""
_LOOKS = 150_000
"""Directories and their parents that are opened in one turn: a bound for very deep trees."""
_READ = 64 << 10
"""Bytes of events that are read at a time; the kernel drops events that come faster, and says so."""
_PIECE = 500
"""Names between two yields."""
_MASK = sys.IN_CREATE | sys.IN_DELETE | sys.IN_MODIFY | sys.IN_MOVED_FROM | sys.IN_MOVED_TO


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of one turn."""

    by_path: Mapping[str, Change]
    more: bool
    """Whether there were more."""


class EventsLostError(Exception):
    """The kernel's event queue has overflowed; the tree must be read again."""


@dataclass(eq=False, slots=True)
class _Directory:
    """A watched directory."""

    wd: int
    path: str
    """Relative to the root; empty for the root itself."""
    names: set[str] = field(default_factory=set)

    def join(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


class WatchTree:
    """The watched tree of one workspace. Blocking, for one thread at a time; `close` releases it."""

    def __init__(self, root: Path, *, hidden: bool, directories: int = DIRECTORIES, names: int = NAMES) -> None:
        """Watch nothing yet. Raises `LimitExceeded` if the system has no inotify instance left."""
        self.hidden = hidden
        """Whether names that begin with a dot are included."""
        self._root = root
        self._max_directories = directories
        self._max_names = names
        self._names = 0
        self._looks = 0
        self._by_wd: dict[int, _Directory] = {}
        self._by_path: dict[str, _Directory] = {}
        self._touched: dict[str, bool] = {}
        self._unseen: list[str] = []
        try:
            self.fd = sys.inotify_init()
        except OSError as exc:
            raise _exhausted("fs.inotify.max_user_instances") from exc

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def start(self) -> BlockingWork[None]:
        """Watch the whole tree. Raises `LimitExceeded`, and `FileError` if the root does not exist."""
        self._unseen.append("")
        yield from self._look()
        self._touched.clear()
        if not self._by_path:
            raise FileError("The session's files are not watched", "they were removed")

    def turn(self) -> BlockingWork[Changes]:
        """Return the changes since the last turn. Raises like `start`, and `EventsLostError`."""
        for event in sys.inotify_read(self.fd, _READ):
            if event.mask & sys.IN_Q_OVERFLOW:
                raise EventsLostError
            self._happened(event)
        yield from self._look()
        if "" not in self._by_path:
            raise FileError("The session's files are not watched any more", "they were removed")
        touched, self._touched = self._touched, {}
        changes: dict[str, Change] = {}
        for path, before in touched.items():
            now = self._knows(path)
            if before or now:
                changes[path] = "modified" if before and now else "added" if now else "deleted"
        if len(changes) <= MOST:
            return Changes(changes, more=False)
        # Visible names first: every watch includes them.
        kept = sorted(changes, key=is_hidden)[:MOST]
        return Changes({path: changes[path] for path in kept}, more=True)

    def _happened(self, event: sys.InotifyEvent) -> None:
        home = self._by_wd.get(event.wd)
        if home is None:
            return
        if event.mask & sys.IN_IGNORED:
            self._forget(home.path)
            return
        path = home.join(event.name)
        if not event.name or self._ignores(path, event.name):
            return
        self._touched.setdefault(path, event.name in home.names)
        if event.mask & (sys.IN_DELETE | sys.IN_MOVED_FROM):
            self._forget(path)
            if event.name in home.names:
                home.names.remove(event.name)
                self._names -= 1
            return
        if event.mask & (sys.IN_CREATE | sys.IN_MOVED_TO):
            self._forget(path)  # it may replace a directory
        self._add(home, event.name)
        if event.mask & sys.IN_ISDIR:
            self._unseen.append(path)

    def _look(self) -> BlockingWork[None]:
        """Watch the directories that are not watched yet, and everything in them."""
        self._looks = _LOOKS
        while self._unseen:
            path = self._unseen.pop()
            # It was removed meanwhile, replaced by a link, or closed to the server: nothing can be reported of it.
            with contextlib.suppress(FileNotFoundError, PermissionError, PathRefusedError):
                yield from self._enter(path)
            yield

    def _enter(self, path: str) -> BlockingWork[None]:
        if len(os.fsencode(path)) > PATH_MAX:
            return  # no message can name what is in it
        parts = path.split("/") if path else []
        self._looks -= len(parts)
        with directory(self._root, parts) as fd:
            home = self._watch(fd, path)
            with os.scandir(fd) as entries:
                for count, entry in enumerate(entries, 1):
                    below = home.join(entry.name)
                    if self._ignores(below, entry.name):
                        continue
                    self._touched.setdefault(below, entry.name in home.names)
                    if entry.name not in home.names:
                        self._add(home, entry.name)
                    if entry.is_dir(follow_symlinks=False) and below not in self._by_path:
                        self._unseen.append(below)
                    if count % _PIECE == 0:
                        yield

    def _watch(self, fd: int, path: str) -> _Directory:
        if len(self._by_wd) >= self._max_directories or self._looks < 0:
            raise _too_much(f"there are more than {self._max_directories} directories, or they are nested too deeply")
        try:
            wd = sys.inotify_add_directory(self.fd, fd, _MASK)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                raise _exhausted("fs.inotify.max_user_watches") from exc
            raise
        home = self._by_wd.get(wd)
        if home is not None and home.path == path:
            return home
        if home is not None:  # it was moved, and the event that says so has not been read yet
            self._forget(home.path, keep=wd)
        self._forget(path)
        home = self._by_wd[wd] = self._by_path[path] = _Directory(wd, path)
        return home

    def _add(self, home: _Directory, name: str) -> None:
        if name in home.names:
            return
        home.names.add(name)
        self._names += 1
        if self._names > self._max_names:
            raise _too_much(f"there are more than {self._max_names} files")

    def _forget(self, path: str, keep: int | None = None) -> None:
        """Remove a directory and everything below it; the watch `keep` stays, for another path."""
        for home in list(self._below(path)):
            for name in home.names:
                self._touched.setdefault(home.join(name), True)
            self._names -= len(home.names)
            del self._by_path[home.path]
            del self._by_wd[home.wd]
            if home.wd != keep:
                with contextlib.suppress(OSError):  # the kernel has removed the watch of a deleted directory
                    sys.inotify_remove(self.fd, home.wd)

    def _below(self, path: str) -> Iterator[_Directory]:
        waiting = [path]
        while waiting:
            home = self._by_path.get(waiting.pop())
            if home is not None:
                yield home
                waiting += (home.join(name) for name in home.names)

    def _knows(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        home = self._by_path.get(parent)
        return home is not None and name in home.names

    def _ignores(self, path: str, name: str) -> bool:
        return name.startswith(".") and (not self.hidden or path == HIDDEN_AREA or is_temporary(name))


def _too_much(reason: str) -> LimitExceeded:
    return LimitExceeded("The session's files are not watched any more", f"{reason}; list them instead")


def _exhausted(setting: str) -> LimitExceeded:
    return LimitExceeded(
        "The session's files are not watched",
        f"the system has no watches left; the server's operator can raise {setting}; list the files instead",
    )
