"""The end of a cell whose output is too much for a message: it is over when all of that is where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kernelbridge.jupyter.bounded import Overflow, Spilled
from kernelbridge.jupyter.execution import Outcome
from kernelbridge.workspace.tasks import TaskSet


def located(done: Callable[[Outcome], None], tasks: TaskSet) -> Callable[[Outcome], None]:
    """Give what a kernel calls with a cell's outcome: `done` is called at once, or when its whole output is on disk.

    Until then the cell counts as running: answers come in the order of the cells. `done` is called whatever happens.
    """

    def ended(outcome: Outcome) -> None:
        if outcome.overflow is None:
            done(outcome)
        else:
            tasks.create(_locate(outcome, outcome.overflow, done))

    return ended


async def _locate(outcome: Outcome, overflow: Overflow, done: Callable[[Outcome], None]) -> None:
    spilled = Spilled(None, complete=False)
    try:
        spilled = await overflow.finish()
    finally:
        truncated = outcome.truncated
        if truncated is not None and spilled.path is not None:
            truncated = {**truncated, "file": spilled.path, "fileComplete": spilled.complete}
        done(replace(outcome, overflow=None, truncated=truncated))
