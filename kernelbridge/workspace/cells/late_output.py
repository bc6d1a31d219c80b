"""What the next result of a session tells besides its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kernelbridge.jupyter.cell import Outcome

LIMIT = 1 << 20
"""Characters of background threads' output that are kept until the next result."""


class LateOutput:
    """What background threads wrote while no cell was theirs, what the server has to say itself, and what was lost."""

    def __init__(self, loss_told: Callable[[], None]) -> None:
        """`loss_told` is called when a result tells what was lost."""
        self.lost: str | None = None
        """How the interpreter ended that earlier cells ran in, until that has been told."""
        self._loss_told = loss_told
        self._pieces: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Keep a text for the next result."""
        room = LIMIT - self._size
        if room < 0:
            return  # said already
        self._pieces.append(text[:room])
        self._size += len(text)
        if len(text) > room:
            self._pieces.append("\n[more output of background threads was left out here]\n")

    def into(self, outcome: Outcome) -> Outcome:
        """Tell all of it in a result, once; what was lost only in that of a cell that ended by itself."""
        text = "".join(self._pieces)
        self._pieces, self._size = [], 0
        ended_by_itself = outcome.cause is None or (outcome.cause == "out_of_memory" and outcome.state_preserved)
        if self.lost is not None and ended_by_itself:
            text = f"kernelbridge: the interpreter {self.lost}; its variables are lost\n{text}"
            outcome = replace(outcome, state_preserved=False)
            self.lost = None
            self._loss_told()
        return replace(outcome, late_output=outcome.late_output + text) if text else outcome
