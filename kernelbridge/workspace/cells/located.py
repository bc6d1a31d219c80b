"""The end of a cell whose output takes time: it is over when all of that is where it belongs, and ready to be sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.aio.turns import turns
from kernelbridge.jupyter.bounded import Spilled
from kernelbridge.jupyter.execution import Outcome
from kernelbridge.protocol.texts import long, written


def located(done: Callable[[Outcome], None], tasks: TaskSet) -> Callable[[Outcome], None]:
    """Give what a kernel calls with a cell's outcome: `done` is called at once, or when its whole output is on disk.

    Long texts are written as JSON before. Until then the cell counts as running: answers come in the order of the
    cells. `done` is called whatever happens.
    """

    def ended(outcome: Outcome) -> None:
        if outcome.overflow is None and not any(map(long, outcome.texts.values())):
            done(outcome)
        else:
            tasks.create(_locate(outcome, done))

    return ended


async def _locate(outcome: Outcome, done: Callable[[Outcome], None]) -> None:
    spilled = Spilled(None, complete=False)
    json = outcome.json
    try:
        if outcome.overflow is not None:
            spilled = await outcome.overflow.finish()
        json = await turns().run(written(outcome.texts))
    finally:
        truncated = outcome.truncated
        if truncated is not None and spilled.path is not None:
            truncated = {**truncated, "file": spilled.path, "fileComplete": spilled.complete}
        done(replace(outcome, overflow=None, truncated=truncated, json=json))
