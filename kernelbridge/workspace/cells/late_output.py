"""What the next result of a session contains besides its own output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kernelbridge.jupyter.cell import Outcome
from kernelbridge.workspace.late_text import LateText


class LateOutput:
    """What background threads wrote between cells, messages of the server, and the loss of an interpreter."""

    def __init__(self, on_loss_reported: Callable[[], None]) -> None:
        """`on_loss_reported` is called when a result reports the loss."""
        self.lost: str | None = None
        """How the interpreter of earlier cells ended, until a result has reported it."""
        self._on_loss_reported = on_loss_reported
        self._text = LateText("background threads")

    def add(self, text: str) -> None:
        """Keep a text for the next result."""
        self._text.add(text)

    def into(self, outcome: Outcome) -> Outcome:
        """Return a result with all of it, once. Only the result of a cell that ended by itself reports the loss."""
        text = self._text.take()
        ended_by_itself = outcome.cause is None or (outcome.cause == "out_of_memory" and outcome.state_preserved)
        if self.lost is not None and ended_by_itself:
            text = f"kernelbridge: the interpreter {self.lost}; its variables are lost\n{text}"
            outcome = replace(outcome, state_preserved=False)
            self.lost = None
            self._on_loss_reported()
        return replace(outcome, late_output=outcome.late_output + text) if text else outcome
