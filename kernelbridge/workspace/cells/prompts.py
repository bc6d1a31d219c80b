"""The question that a running cell asks its client: from `input()` to the line that answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from kernelbridge.errors import BadRequest, NoInputWaiting
from kernelbridge.jupyter.events import Asked
from kernelbridge.workspace.journal.feed import Listener

END_OF_INPUT = "\x04"
"""What a kernel takes for the end of its input."""
MAX_VALUE = 1 << 20
"""Characters of one line of input."""


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
    """The questions of one cell, of which it asks one at a time.

    `limit` is how many seconds may pass without an answer; `unanswered` is called then.
    """

    def __init__(self, *, limit: float | None, unanswered: Callable[[], None]) -> None:
        self._limit = limit
        self._unanswered = unanswered
        self._timer: asyncio.TimerHandle | None = None
        self.waiting: Prompt | None = None

    def ask(self, asked: Asked) -> None:
        """Remember a question, and start its time limit."""
        self.drop()
        self.waiting = Prompt(asked)
        if self._limit is not None:
            self._timer = asyncio.get_running_loop().call_later(self._limit, self._unanswered)

    def check(self, value: str, input_id: str | None) -> None:
        """Check that an answer can be given. Raises `NoInputWaiting` or `BadRequest`."""
        if self.waiting is None:
            raise nothing_waits()
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


def nothing_waits() -> NoInputWaiting:
    """Return the error for an answer that nobody has asked for."""
    return NoInputWaiting("Nothing waits for input in this session", "send it after an input_request")
