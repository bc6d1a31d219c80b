"""The cells that wait in one session."""

from __future__ import annotations

from collections import deque

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.execution import Outcome
from kernelbridge.workspace.cells.queue import Job
from kernelbridge.workspace.queue_limits import WaitingBudget

CHARACTERS = 32 << 20
"""Length of the code that may wait in a session: requests are few or small."""


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
