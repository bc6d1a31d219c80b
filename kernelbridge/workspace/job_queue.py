"""The cells or commands of one lane that wait, first in, first out; and how each is answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import structlog

from kernelbridge.errors import KernelBridgeError
from kernelbridge.workspace.queue_limits import WaitingBudget

log = structlog.get_logger(__name__)

A = TypeVar("A")


class QueuedJob(Protocol):
    """A cell or a command."""

    @property
    def text(self) -> str:
        """Its code or its command line."""
        ...

    @property
    def done(self) -> Callable[[Any], None]:
        """Called once, with its outcome or the error that kept it from running."""
        ...


J = TypeVar("J", bound=QueuedJob)


class JobQueue(Generic[J]):
    """The jobs that wait, bounded in number and in length."""

    def __init__(self, what: str, *, requests: int, characters: int) -> None:
        """Begin empty; errors call the jobs `what`, e.g. `cells`."""
        self._budget = WaitingBudget(what, requests=requests, characters=characters)
        self._jobs: deque[J] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def first(self) -> J | None:
        """The job that has waited longest, or None."""
        return self._jobs[0] if self._jobs else None

    def put(self, job: J) -> None:
        """Add a job; raises `LimitExceeded`."""
        self._budget.take(job.text)
        self._jobs.append(job)

    def next(self) -> J:
        """Remove and return the job that has waited longest."""
        job = self._jobs.popleft()
        self._budget.release(job.text)
        return job

    def end(self, outcome: Any, limit: int | None = None) -> int:
        """Answer the waiting jobs, or the first `limit` of them, without running them; return how many."""
        count = len(self._jobs) if limit is None else min(limit, len(self._jobs))
        for job in [self.next() for _ in range(count)]:
            answer(job.done, outcome)
        return count


def answer(done: Callable[[A | KernelBridgeError], None], outcome: A | KernelBridgeError) -> None:
    """Call `done` with the outcome. An exception is logged: the jobs behind it must run all the same."""
    try:
        done(outcome)
    except Exception:
        log.exception("answer_failed")
