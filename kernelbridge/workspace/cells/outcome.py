"""The steps of a cell's outcome from its kernel to its answer; each may change it.

    with_losses   adds, for a cell of an earlier server, how much of its output is lost    `jupyter/adopted.py`
    explained     adds the cause, if the session's memory ran out meanwhile                `resource_watch.py`
    written       waits until the whole output is on disk and long texts are JSON
    ended         ends the deadline and the question; adds by what the cell was ended      `run.py`
    with_hint     adds what to do instead of what is impossible in a sandbox               `hints.py`, `denials.py`
    stopped       adds the cause, if the cell was stopped at the session's disk limit      `disk_watch.py`
    into          adds late output, and the loss of an earlier interpreter                 `late_output.py`

`Run` makes the list. The cell counts as running until the last step, so answers come in the order of the cells.
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
from kernelbridge.workspace.denials import Denials
from kernelbridge.workspace.hints import cell_hint

log = structlog.get_logger(__name__)

Step = Callable[[Outcome], Outcome | Coroutine[Any, Any, Outcome]]
"""Returns the outcome, or a coroutine that does; such a coroutine must not raise when it is cancelled."""


def finish(outcome: Outcome, steps: Sequence[Step], answer: Callable[[Outcome], None], tasks: TaskSet) -> None:
    """Apply `steps` to an outcome, and call `answer` with the result: at once, if no step is a coroutine."""
    for number, step in enumerate(steps, 1):
        result = step(outcome)
        if not isinstance(result, Outcome):
            tasks.create(_finish_later(result, steps[number:], answer, tasks))
            return
        outcome = result
    answer(outcome)


async def _finish_later(
    step: Coroutine[Any, Any, Outcome], rest: Sequence[Step], answer: Callable[[Outcome], None], tasks: TaskSet
) -> None:
    finish(await step, rest, answer, tasks)


def written(outcome: Outcome) -> Outcome | Coroutine[Any, Any, Outcome]:
    """Wait until the whole output is on disk and long texts are written as JSON, where that is needed."""
    if outcome.spill is None and not any(map(texts.long, outcome.texts.values())):
        return outcome
    return _written(outcome)


async def _written(outcome: Outcome) -> Outcome:
    spilled, json, truncated = Spilled(None, complete=False), outcome.json, outcome.truncated
    try:
        if outcome.spill is not None:
            spilled = await outcome.spill.finish()
        json = await turns().run(texts.written(outcome.texts))
    except asyncio.CancelledError:
        log.info("output_not_written", why="the session ends")  # the answer has what is written by now
    except Exception:
        log.exception("output_not_written")
    if truncated is not None and spilled.path is not None:
        truncated = {**truncated, "file": spilled.path, "fileComplete": spilled.complete}
    return replace(outcome, spill=None, truncated=truncated, json=json)


def with_hint(outcome: Outcome, *, denials: Denials, mark: int) -> Outcome:
    """Add a hint, if the cell failed for a reason that lies in the sandbox, or was refused a host since `mark`."""
    hint = denials.hint(mark, cell_hint(outcome))
    return outcome if hint is None else replace(outcome, hint=hint)
