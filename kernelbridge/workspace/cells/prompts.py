"""The question that a running cell asks: from `input()` to the line that answers it."""

from __future__ import annotations

from dataclasses import dataclass, field

from kernelbridge.errors import BadRequest, NoInputWaiting
from kernelbridge.jupyter.events import Asked
from kernelbridge.workspace.journal.feed import Listener

END_OF_INPUT = "\x04"
"""The line that ends a kernel's input."""
MAX_VALUE = 1 << 20
"""Characters of one line of input."""


@dataclass(slots=True)
class Prompt:
    """One question, until it is answered or withdrawn."""

    asked: Asked
    shown_to: list[Listener] = field(default_factory=list)
    """The connections to which it was sent."""

    @property
    def known(self) -> bool:
        """Whether one of them is still open."""
        return any(listener.open for listener in self.shown_to)


def check_answer(prompt: Prompt | None, value: str, input_id: str | None) -> None:
    """Check that `value` can answer the question that waits. Raises `NoInputWaiting` or `BadRequest`."""
    if prompt is None:
        raise NoInputWaiting("Nothing waits for input in this session", "send it after an input_request")
    if input_id is not None and input_id != prompt.asked.input_id:
        raise NoInputWaiting(
            "That question does not wait for an answer any more",
            "inputId must be that of the latest input_request, or be left out",
        )
    if len(value) > MAX_VALUE:
        expected = f"expected at most {MAX_VALUE} characters"
        raise BadRequest("The field 'value' is wrong", expected, field="value", code="invalid_field")
