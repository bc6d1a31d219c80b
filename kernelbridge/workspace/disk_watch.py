"""Keeps a session at its disk limit while its sandbox runs.

Where the file system enforces no limit, what a session uses can only be found by looking at all its files. So first the
free space of the whole file system is looked at, which costs nothing: if that has hardly changed since the last look at
the files, no session can have used much. `disk/limits.py` decides what happens to a session that is above its limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from kernelbridge.aio.threads import in_thread, in_turns
from kernelbridge.disk.limits import DiskLimits, DiskPolicy, Reaction, Use
from kernelbridge.disk.session_disks import SessionDisk, room_of
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.metrics import Metrics
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace.command_outcome import CommandOutcome

log = structlog.get_logger(__name__)

EVERY = 2.0
"""Seconds between two looks."""
SOON = 1.0
"""Seconds until the look after an interrupt."""
AT_ONCE = 0.2
"""Seconds until the look at a session that has just passed its limit: long enough to see whether it grows."""
LONGEST = 10.0
"""Seconds after which the files are looked at although the free space says that nothing happened: what one session
writes may be as much as another one deletes."""
_REST = 3
"""The pause after a look, as a multiple of the time that the look took."""
_PART = 4
"""A look is due when the free space has fallen by this part of what the session has left."""
_ENDED = frozenset({"interrupted", "kernel_died", "kernel_restarted", "sandbox_lost", "shell_exited"})
"""Causes of results that a stop explains."""

Ended = TypeVar("Ended", Outcome, CommandOutcome)


class Tell(Protocol):
    """Reports the figures to clients."""

    def __call__(self, detail: str, *, stopped: bool) -> None:
        """Report; `stopped` says whether what runs is stopped, so that its result has the figures, too."""
        ...


class DiskStops:
    """How often programs of a session were stopped because of its disk limit, for the results of what was ended."""

    def __init__(self) -> None:
        self._count = 0
        self._hint = ""

    def add(self, hint: str) -> None:
        """Note that what runs is being stopped; `hint` has the figures."""
        self._count += 1
        self._hint = hint

    def mark(self) -> int:
        """Return the present count, for `explained` after a run."""
        return self._count

    def explained(self, outcome: Ended, mark: int) -> Ended:
        """Return the outcome of a run that began at `mark`, with the cause if it was stopped meanwhile."""
        if self._count == mark or outcome.cause not in _ENDED:
            return outcome
        return replace(outcome, cause="disk_limit", hint=self._hint)


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at the files."""

    use: Use
    room: Use
    """What was free on the whole file system."""
    at: float
    took: float


def due(last: _Look | None, room: Use, now: float, limits: DiskLimits, *, counts_files: bool) -> bool:
    """Whether the files must be looked at; `room` is what is free now, and `counts_files` whether that has inodes."""
    if last is None:
        return True
    age = now - last.at
    if age < _REST * last.took:
        return False
    left = limits.left(last.use)
    fell = Use(last.room.size - room.size, last.room.files - room.files)
    quiet = counts_files and fell.size * _PART < left.size and fell.files * _PART < left.files
    return not quiet or age >= LONGEST


class DiskWatch:
    """Watches one session."""

    def __init__(
        self,
        disk: SessionDisk,
        root: Path,
        stops: DiskStops,
        *,
        executor: Executor,
        asleep: Callable[[], bool],
        tell: Tell,
        interrupt: Callable[[], None],
        end: Callable[[], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        """Watch no sandbox yet.

        `root` is the session's directory. `asleep` says whether the sandbox is paused. `interrupt` interrupts what
        runs, `end` ends the sandbox. `metrics` counts how often the limit is reached.
        """
        self._disk = disk
        self._root = root
        self._stops = stops
        self._executor = executor
        self._asleep = asleep
        self._tell = tell
        self._interrupt = interrupt
        self._end = end
        self._metrics = metrics
        self._policy = DiskPolicy(enforced=disk.enforced)
        self._last: _Look | None = None

    @property
    def size(self) -> int | None:
        """Bytes that the session took of the disk at the last look; None if nobody has looked."""
        return None if self._last is None else self._last.use.size

    async def watch(self, sandbox: Sandbox) -> None:
        """Watch until the sandbox has ended. If cancelled, it does nothing more."""
        if not self._disk.limits:
            return
        self._policy.sandbox_began(self._disk.limits)
        ended = asyncio.ensure_future(sandbox.wait())
        wait = 0.0
        try:
            while True:
                await asyncio.wait({ended}, timeout=wait)
                if ended.done():
                    return
                if self._asleep():
                    wait = EVERY
                    continue
                try:
                    use = await self._look()
                except OSError as exc:  # the next look may succeed
                    log.warning("disk_not_measured", path=str(self._root), error=str(exc))
                    wait = EVERY
                    continue
                if use is not None:
                    reaction = await self._react(use)
                    wait = {Reaction.LOOK_AGAIN: AT_ONCE, Reaction.INTERRUPT: SOON}.get(reaction, EVERY)
        finally:
            ended.cancel()

    async def _look(self) -> Use | None:
        """Return what the session uses, or None if it can hardly have changed. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        room, counts_files = await in_thread(self._executor, room_of, self._root)
        began = loop.time()
        if not due(self._last, room, began, self._disk.limits, counts_files=counts_files):
            return None
        use = await in_turns(self._executor, self._disk.measuring())
        self._last = _Look(use, room, loop.time(), loop.time() - began)
        return use

    async def _react(self, use: Use) -> Reaction:
        reaction = self._policy.next(use)
        if reaction not in {Reaction.NONE, Reaction.LOOK_AGAIN}:
            log.warning("disk_limit", path=str(self._root), size=use.size, files=use.files, reaction=reaction.value)
        if reaction in {Reaction.TELL, Reaction.INTERRUPT}:
            self._metrics.disk_limit_reached("files" if self._disk.limits.left(use).files <= 0 else "size")
        figures = f"the session has reached its disk limit: {self._disk.limits.describe(use)}"
        if reaction is Reaction.TELL:
            self._tell(f"{figures}; delete files", stopped=False)
        elif reaction is Reaction.INTERRUPT:
            self._stop(f"{figures}; what ran was interrupted; delete files")
            self._interrupt()
        elif reaction is Reaction.END:
            self._stop(f"{figures}; everything that ran was ended; delete files, for which a new sandbox can start")
            await self._end()
        return reaction

    def _stop(self, text: str) -> None:
        self._stops.add(text)
        self._tell(text, stopped=True)
