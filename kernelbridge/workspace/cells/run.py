"""The running cell: the input that it waits for, its output until that is on disk, and a cell of an earlier server.

A `PreviousCell` was sent by an earlier server; it is kept until the kernel that has it can be reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.aio.turns import turns
from kernelbridge.errors import BadRequest, KernelBridgeError, NoInputWaiting
from kernelbridge.jupyter.bounded import Spilled
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.events import Asked
from kernelbridge.protocol.texts import long, written
from kernelbridge.workspace.cells.interrupts import Reports
from kernelbridge.workspace.cells.queue import Job
from kernelbridge.workspace.journal.feed import Listener
from kernelbridge.workspace.session_state import RunningCell

END_OF_INPUT = "\x04"
"""What a kernel takes for the end of its input."""
MAX_VALUE = 1 << 20
"""Characters of one line of input."""


@dataclass(frozen=True, slots=True)
class PreviousCell:
    """What is known of it, and who wants to interrupt it."""

    job: Job
    cell: RunningCell
    interrupts: Reports = field(default_factory=Reports)
    """Of those who will be told how it is ended, once that can begin."""

    def answer(self, answer: Outcome | KernelBridgeError) -> None:
        """Answer it and them: it was never reached, and its interpreter is lost."""
        self.never_interrupted()
        self.job.answer(answer)

    def never_interrupted(self) -> None:
        """Tell those who wanted to interrupt it that it has ended with its interpreter."""
        self.interrupts.tell("none", done=True, state_preserved=False)


def wait_for_spill(done: Callable[[Outcome], None], tasks: TaskSet) -> Callable[[Outcome], None]:
    """Give what a kernel calls with a cell's outcome: `done` is called at once, or when its whole output is on disk.

    Long texts are written as JSON before. Until then the cell counts as running: answers come in the order of the
    cells. `done` is called whatever happens.
    """

    def ended(outcome: Outcome) -> None:
        if outcome.overflow is None and not any(map(long, outcome.texts.values())):
            done(outcome)
        else:
            tasks.create(_finish(outcome, done))

    return ended


async def _finish(outcome: Outcome, done: Callable[[Outcome], None]) -> None:
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


@dataclass(slots=True)
class Prompt:
    """One question, from when it is asked until it is answered or given up."""

    asked: Asked
    told: list[Listener] = field(default_factory=list)
    """Connections that were told of it."""

    @property
    def known(self) -> bool:
        """Whether one of them is still there."""
        return any(listener.open for listener in self.told)


class Prompts:
    """The question of one session: there is never more than one, for one cell runs at a time.

    `limit` is how many seconds may pass without an answer; `unanswered` is called then.
    """

    def __init__(self, *, limit: float | None, unanswered: Callable[[], None]) -> None:
        self._limit = limit
        self._unanswered = unanswered
        self._timer: asyncio.TimerHandle | None = None
        self.waiting: Prompt | None = None

    def ask(self, asked: Asked) -> None:
        """Have a question."""
        self.drop()
        self.waiting = Prompt(asked)
        if self._limit is not None:
            self._timer = asyncio.get_running_loop().call_later(self._limit, self._unanswered)

    def check(self, value: str, input_id: str | None) -> None:
        """See that an answer can be given. Raises `NoInputWaiting` or `BadRequest`."""
        if self.waiting is None:
            raise NoInputWaiting("Nothing waits for input in this session", "send it after an input_request")
        if input_id is not None and input_id != self.waiting.asked.input_id:
            raise NoInputWaiting(
                "That question does not wait for an answer any more",
                "inputId must be that of the latest input_request, or be left out",
            )
        if len(value) > MAX_VALUE:
            raise BadRequest(
                "The field 'value' is wrong",
                f"expected at most {MAX_VALUE} characters",
                field="value",
                code="invalid_field",
            )

    def drop(self) -> None:
        """Forget the question: it is answered, or its cell has ended or is interrupted. Idempotent."""
        self.waiting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
