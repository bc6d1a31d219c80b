"""What each session may use of the disk, and uses.

A *limit* is what a session may use (`DiskLimits`), its *use* is what it does (`Use`). A *quota* is the means by which a
file system itself enforces a limit (`Projects`). Without quotas, the server measures, refuses its own writes here, and
stops programs that write too much (`workspace/disk_watch.py`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from kernelbridge.aio.threads import BlockingWork
from kernelbridge.disk.limits import DiskLimits, Use
from kernelbridge.disk.measure import deleted_but_open, measuring
from kernelbridge.disk.projects import Projects
from kernelbridge.errors import DiskFull, DiskLimitReached, FileError

_TO_DO = "delete files (delete_file, or `rm` in a command) and send it again; session_info has the figures"


class SessionDisks:
    """Those of all sessions of one server. Thread-safe."""

    def __init__(self, limits: DiskLimits, projects: Projects | None = None) -> None:
        """With `projects`, the file system enforces the limits; without, sessions are measured."""
        self.limits = limits
        self.projects = projects
        self.own_uids = False
        """Whether each session has a user id of its own, so that its processes can be told from others."""
        self._sessions: WeakValueDictionary[str, SessionDisk] = WeakValueDictionary()
        self._lock = Lock()

    @classmethod
    def open(cls, directory: Path, limits: DiskLimits, *, instance: str) -> SessionDisks:
        """Return those of a server whose sessions are in `directory`; blocking."""
        projects = Projects.find(directory, instance=instance) if limits else None
        if projects is not None:
            for home in directory.iterdir():
                projects.know(home.name, home / "files")
        return cls(limits, projects)

    @property
    def enforced(self) -> bool:
        """Whether the file system itself refuses what exceeds a limit."""
        return self.projects is not None

    def close(self) -> None:
        """Release what was opened."""
        if self.projects is not None:
            self.projects.close()

    def session(self, name: str, root: Path) -> SessionDisk:
        """Return the use of the session whose directory is `root`, the same object for all that use it at a time."""
        with self._lock:
            session = self._sessions.get(name)
            if session is None:
                session = self._sessions[name] = SessionDisk(self, name, root)
            return session

    def apply_limits(self, name: str, root: Path) -> BlockingWork[None]:
        """Set a session's quota to its limits, where there are quotas. Its directory may be new. Raises `OSError`."""
        if self.projects is not None:
            yield from self.projects.apply_limits(name, root, self.session(name, root).limits)

    def release(self, name: str) -> None:
        """Forget a session whose files were deleted."""
        if self.projects is not None:
            self.projects.release(name)


class SessionDisk:
    """What one session uses. Blocking; thread-safe."""

    def __init__(self, disk: SessionDisks, name: str, root: Path) -> None:
        self._disk = disk
        self._name = name
        self._root = root
        self._size: int | None = None
        """Bytes that the session may use, if it asked for less than others have."""
        self._chosen_by: object = None
        """Who asked for that."""
        self._found: Use | None = None
        """What was found last; None before."""
        self._added = Use(0, 0)
        """What the server has written since."""
        self._lock = Lock()

    @property
    def limits(self) -> DiskLimits:
        """The session's limits."""
        limits = self._disk.limits
        return limits if self._size is None else DiskLimits(self._size, limits.files)

    def lower(self, size: int | None, by: object) -> None:
        """Limit the session to `size` bytes until `restore`; None for what the server allows each session.

        `by` is one life of the session, from its opening to its close; the latest decides. Where the file system
        enforces limits, this one holds after the next `SessionDisks.apply_limits`.
        """
        self._size, self._chosen_by = size, by

    def restore(self, by: object) -> None:
        """End what this life of the session has asked for. Does nothing if there is a later one."""
        if self._chosen_by is by:
            self._size = self._chosen_by = None

    @property
    def enforced(self) -> bool:
        """Whether the file system itself refuses what exceeds them."""
        return self._disk.enforced

    def measuring(self) -> BlockingWork[Use]:
        """Return what the session uses now. Raises `OSError`; a session without files uses nothing."""
        try:
            use = yield from self._measuring()
        except FileNotFoundError:
            use = Use(0, 0)
        with self._lock:
            self._found, self._added = use, Use(0, 0)
        return use

    def _measuring(self) -> BlockingWork[Use]:
        if self._disk.projects is not None and (use := self._disk.projects.use(self._name)) is not None:
            return use
        found = self._root.stat()
        use = yield from measuring(self._root)
        if self._disk.own_uids:
            held = deleted_but_open(found.st_uid, found.st_dev)
            use = Use(use.size + held.size, use.files + held.files)
        return use

    def admitting(self, size: int, files: int, message: str) -> BlockingWork[None]:
        """Count `size` bytes and `files` new files and directories; measure first if they may be too much.

        Raises `DiskLimitReached` with `message` if the session has no room for them.
        """
        yield from self.checking(size, message, files)
        with self._lock:
            self._added = Use(self._added.size + size, self._added.files + files)

    def checking(self, size: int, message: str, files: int = 0) -> BlockingWork[None]:
        """Do the work of `admitting` without counting."""
        more = Use(size, files)
        # To ask the file system costs nothing, and ext4 refuses nothing to root: so the server itself has to look.
        if self.enforced or not self._fits(more):
            with contextlib.suppress(OSError):
                yield from self.measuring()
            if not self._fits(more):
                raise self._refusal(message)

    def _fits(self, more: Use) -> bool:
        with self._lock:
            found, added = self._found, self._added
        if not self.limits:
            return True
        if found is None:
            return False
        all_in_all = Use(found.size + added.size + more.size, found.files + added.files + more.files)
        return not self.limits.exceeded(all_in_all)

    def _refusal(self, message: str) -> DiskLimitReached:
        use = self._found or Use(0, 0)
        return DiskLimitReached(message, f"the session has no room for it: {self.limits.describe(use)}; {_TO_DO}")

    def explaining(self, failure: FileError) -> BlockingWork[FileError]:
        """Return the error to report for a failure: one with the figures if the cause is the session's own limit."""
        if isinstance(failure, DiskFull) and not isinstance(failure, DiskLimitReached) and self.enforced:
            with contextlib.suppress(OSError):
                # XFS and ext4 have different errors for it, and one of them is that of a full disk.
                use = yield from self.measuring()
                if self.limits.reached(use):
                    return self._refusal(failure.message)
        return failure


def room_of(path: Path) -> tuple[Use, bool]:
    """Return what is free on the file system of `path`, and whether it counts inodes; blocking. Raises `OSError`."""
    found = os.statvfs(path)
    return Use(found.f_bavail * found.f_frsize, found.f_favail), found.f_files > 0
