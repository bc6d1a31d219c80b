"""The disk limit of a session, and what follows from its use; pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kernelbridge.settings.quantities import human_size

SLACK = 1 << 20
"""Bytes by which a session above its limit may grow before it is stopped again: programs write small files as they
start and end."""
SLACK_FILES = 64
"""The same in files."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a session uses of the disk."""

    size: int
    """Bytes of the blocks that are taken; the holes of sparse files are none."""
    files: int
    """Files, directories and other inodes."""


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """What a session may use of the disk; 0 is no limit."""

    size: int = 0
    """Bytes."""
    files: int = 0
    """Inodes."""

    def __bool__(self) -> bool:
        return bool(self.size or self.files)

    def exceeded(self, use: Use) -> bool:
        """Whether a session that uses this much is above its limit."""
        return bool((self.size and use.size > self.size) or (self.files and use.files > self.files))

    def reached(self, use: Use) -> bool:
        """Whether the next write of such a session may fail where the file system itself refuses."""
        near = self.size - (self.size >> 8)
        return bool((self.size and use.size >= near) or (self.files and use.files >= self.files))

    def left(self, use: Use) -> Use:
        """Return what such a session has left; without a limit, more than any disk has."""
        return Use(
            max(0, self.size - use.size) if self.size else 1 << 62,
            max(0, self.files - use.files) if self.files else 1 << 62,
        )

    def describe(self, use: Use) -> str:
        """Return the figures: `the session uses 2.1 GiB of 2.0 GiB, and 31 of 200,000 files`."""
        size = human_size(use.size) + (f" of {human_size(self.size)}" if self.size else "")
        files = f"{use.files:,}" + (f" of {self.files:,}" if self.files else "")
        return f"the session uses {size} of disk, and {files} files"


class Reaction(Enum):
    """What to do about the use of a session that runs."""

    NONE = "none"
    LOOK_AGAIN = "look again"
    """At once: what has written too much may have ended, and what runs now may have written nothing."""
    TELL = "tell"
    INTERRUPT = "interrupt"
    """Interrupt the running cell, and end what commands have started."""
    END = "end"
    """End everything that runs."""


class DiskPolicy:
    """Decides, look by look, how a session is kept at its limit.

    A session that passes the limit and still grows is interrupted. One that grows after that is ended. One that does
    not grow is told. It may stay above its limit and run what it likes: else nobody could look for what to delete. With
    `enforced`, the file system itself refuses to exceed the limit, and the session is only told.
    """

    def __init__(self, *, enforced: bool) -> None:
        self._limits = DiskLimits()
        self._enforced = enforced
        self._level: Use | None = None
        """What a session above its limit may use for now; None for one that is not above it."""
        self._fresh = True
        self._told = True
        """Whether the session was told that it is above its limit."""
        self._interrupted = False

    def sandbox_began(self, limits: DiskLimits) -> None:
        """Note that another sandbox runs, with these limits: what is on the disk was not written by its programs."""
        self._limits = limits
        self._fresh, self._interrupted = True, False

    def next(self, use: Use) -> Reaction:
        """Decide about the use that was found at this look."""
        fresh, self._fresh = self._fresh, False
        warned, self._interrupted = self._interrupted, False
        if not (self._limits.reached(use) if self._enforced else self._limits.exceeded(use)):
            self._level = None
            return Reaction.NONE
        level = self._level
        if level is None or fresh:
            self._level = use
            self._told = fresh or self._enforced
            return Reaction.TELL if self._told else Reaction.LOOK_AGAIN
        told, self._told = self._told, True
        if self._enforced or not _grown(level, use):
            self._level = Use(min(level.size, use.size), min(level.files, use.files))
            return Reaction.NONE if told else Reaction.TELL
        self._level = use
        self._interrupted = not warned
        return Reaction.END if warned else Reaction.INTERRUPT


def _grown(level: Use, use: Use) -> bool:
    return use.size > level.size + SLACK or use.files > level.files + SLACK_FILES
