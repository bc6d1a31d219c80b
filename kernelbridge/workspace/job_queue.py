"""The cells or commands of one lane that wait, first in, first out; their limits, and how each is answered; pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import structlog

from kernelbridge.errors import BadRequest, KernelBridgeError, LimitExceeded

log = structlog.get_logger(__name__)

A = TypeVar("A")


class WaitingBudget:
    """Counts waiting requests and their characters. Above either limit, a request is refused."""

    def __init__(self, what: str, *, requests: int, characters: int) -> None:
        self._what = what
        self._requests = requests
        self._characters = characters
        self._waiting = 0
        self._size = 0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._waiting

    def take(self, text: str) -> None:
        """Add a request; raises `LimitExceeded`. A single request may have any size."""
        if self._waiting >= self._requests:
            self._refuse(f"the limit is {self._requests}")
        if self._waiting and self._size + len(text) > self._characters:
            self._refuse(f"together they may have {self._characters} characters")
        self._waiting += 1
        self._size += len(text)

    def release(self, text: str) -> None:
        """Remove a request that does not wait any more."""
        self._waiting -= 1
        self._size -= len(text)

    def _refuse(self, limit: str) -> None:
        raise LimitExceeded(
            f"Too many {self._what} are waiting in this session", f"{limit}; wait for answers before sending more"
        )


class QueuedJob(Protocol):
    """A cell or a command."""

    @property
    def text(self) -> str:
        """Its code or its command line."""
        ...

    @property
    def request_id(self) -> str | None:
        """The `requestId` of its request, if it has one."""
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

    @property
    def request_ids(self) -> set[str]:
        """The ids of the requests that wait, of those that have one."""
        return {job.request_id for job in self._jobs if job.request_id}

    def put(self, job: J) -> None:
        """Add a job; raises `LimitExceeded`."""
        self._budget.take(job.text)
        self._jobs.append(job)

    def next(self) -> J:
        """Remove and return the job that has waited longest."""
        job = self._jobs.popleft()
        self._budget.release(job.text)
        return job

    def withdraw(self, request_id: str, outcome: Any) -> int:
        """Answer the jobs of one request without running them; return how many."""
        jobs = [job for job in self._jobs if job.request_id == request_id]
        for job in jobs:
            self._jobs.remove(job)
            self._budget.release(job.text)
            answer(job.done, outcome)
        return len(jobs)

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


def run_timeout(wanted: float | None, limit: float | None) -> float | None:
    """Return the timeout of one cell or command in seconds, None for no limit: `wanted`, or the server's limit.

    Raises `BadRequest` if `wanted` is larger than the limit.
    """
    if wanted is None or limit is None:
        return limit if wanted is None else wanted
    if wanted > limit:
        reason = f"expected at most {limit:g} seconds, the server's execution_timeout, and not {wanted:g}"
        raise BadRequest("The field 'timeout' is wrong", reason, field="timeout", code="invalid_field")
    return wanted
