"""The question that a running cell asks: from `input()` to the line that answers it."""

from __future__ import annotations

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


def check_answer(prompt: Prompt | None, value: str, input_id: str | None) -> None:
    """Check that `value` can be given to the question that waits. Raises `NoInputWaiting` or `BadRequest`."""
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
