"""The way of a cell's outcome from its kernel to its answer: a list of steps, each of which may change it.

    with_losses   of a cell that an earlier server sent: what of its output is lost        `jupyter/adopted.py`
    explained     whether the session's memory ran out meanwhile                           `resource_watch.py`
    written       its whole output is on disk, and its long texts are JSON; takes time
    ended         its deadline and its question are over; by what it was ended             `run.py`
    with_hint     what to do instead, where a sandbox cannot do what the cell wanted       `hints.py`
    into          what was written between cells, and that an earlier interpreter is lost  `late_output.py`

`Run` puts the list together. While a step takes its time, the cell counts as running: answers come in the order of the
cells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import structlog

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.aio.turns import turns
from kernelbridge.jupyter.bounded import Spilled
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.protocol import texts
from kernelbridge.workspace.hints import cell_hint

log = structlog.get_logger(__name__)

Step = Callable[[Outcome], Outcome | Coroutine[Any, Any, Outcome]]
"""Return the outcome as it goes on, or a coroutine that does; such a coroutine swallows its cancellation."""


def take(outcome: Outcome, steps: Sequence[Step], answer: Callable[[Outcome], None], tasks: TaskSet) -> None:
    """Take an outcome through `steps`, and call `answer` with the result: at once, if no step takes time."""
    for number, step in enumerate(steps, 1):
        result = step(outcome)
        if not isinstance(result, Outcome):
            tasks.create(_take_later(result, steps[number:], answer, tasks))
            return
        outcome = result
    answer(outcome)


async def _take_later(
    step: Coroutine[Any, Any, Outcome], rest: Sequence[Step], answer: Callable[[Outcome], None], tasks: TaskSet
) -> None:
    take(await step, rest, answer, tasks)


def written(outcome: Outcome) -> Outcome | Coroutine[Any, Any, Outcome]:
    """Wait until the whole output is on disk and long texts are written as JSON, if there are any."""
    if outcome.overflow is None and not any(map(texts.long, outcome.texts.values())):
        return outcome
    return _written(outcome)


async def _written(outcome: Outcome) -> Outcome:
    spilled, json, truncated = Spilled(None, complete=False), outcome.json, outcome.truncated
    try:
        if outcome.overflow is not None:
            spilled = await outcome.overflow.finish()
        json = await turns().run(texts.written(outcome.texts))
    except asyncio.CancelledError:
        log.info("output_not_written", why="the session ends")  # the answer has what there is by now
    except Exception:
        log.exception("output_not_written")
    if truncated is not None and spilled.path is not None:
        truncated = {**truncated, "file": spilled.path, "fileComplete": spilled.complete}
    return replace(outcome, overflow=None, truncated=truncated, json=json)


def with_hint(outcome: Outcome) -> Outcome:
    """Say what to do instead, if the cell failed for a reason that a sandbox gives."""
    hint = cell_hint(outcome)
    return outcome if hint is None else replace(outcome, hint=hint)
