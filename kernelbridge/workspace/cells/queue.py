"""The queue of a session's cells: one cell in it, its limits, and the answers to cells that never run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Listener
from kernelbridge.workspace.cells.interrupts import Report
from kernelbridge.workspace.queue_limits import WaitingBudget

log = structlog.get_logger(__name__)

ExecutionDone = Callable[[Outcome | KernelBridgeError], None]

CHARACTERS = 32 << 20
"""Length of the code that may wait in a session: requests are few or small."""


@dataclass(frozen=True, slots=True)
class Job:
    """A cell, and what becomes of it."""

    cell: Cell
    done: ExecutionDone
    """Called once, with its outcome or the error that kept it from running."""
    listener: Listener | None = None
    """Told of it while it runs. A cell that may ask for input has one."""
    timeout: float | None = None
    """Seconds, the lane's own limit if None; its clock stands still while it waits for input."""
    report: Report | None = None
    """Told how it is ended, when its time is over."""
    request_id: str | None = None
    """That of the request, for a server that answers it in place of this one."""

    def answer(self, outcome: Outcome | KernelBridgeError) -> None:
        """Tell whoever asked."""
        try:
            self.done(outcome)
        except Exception:
            # Whoever asked cannot take the answer; the cells behind it must run all the same.
            log.exception("answer_failed")


class CellRecord(Protocol):
    """What is told which cell runs, so that another server can know."""

    def begins(self, msg_id: str, job: Job, since: float, began: float) -> None:
        """Take note of a cell that is about to be sent: `since` in seconds since the epoch, `began` in monotonic."""

    def counts(self, left: float, now: float | None) -> None:
        """Take note that so much of its time is left, monotonic `now`; None: and that it stands still."""

    def ended(self) -> None:
        """Take note that it was answered."""


def _never_ran(cause: str, why: str) -> Outcome:
    return Outcome.ended(cause, f"{why} before the cell ran; it never ran")


NEVER_INTERRUPTED = _never_ran("interrupted", "Interrupted: what waited was ended")
NEVER_RESTARTED = _never_ran("kernel_restarted", "KernelRestarted: the interpreter was restarted")
NEVER_CLOSED = Outcome.ended("session_closed", "SessionClosed: the session was closed before the cell ran")


class WaitingJobs:
    """First in, first out; bounded."""

    def __init__(self, *, requests: int) -> None:
        self._budget = WaitingBudget("cells", requests=requests, characters=CHARACTERS)
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Take one more; raises `LimitExceeded`."""
        self._budget.take(job.cell.code)
        self._jobs.append(job)

    def next(self) -> Job:
        """Give the one that waits longest."""
        job = self._jobs.popleft()
        self._budget.release(job.cell.code)
        return job

    def end(self, answer: Outcome | KernelBridgeError, limit: int | None = None) -> int:
        """Answer them, or the first `limit` of them, without running them; give how many."""
        ended = [self.next() for _ in range(len(self._jobs) if limit is None else min(limit, len(self._jobs)))]
        for job in ended:
            job.answer(answer)
        return len(ended)
