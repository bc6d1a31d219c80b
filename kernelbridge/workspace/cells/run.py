"""A cell that an earlier server has sent, until the kernel that has it can be reached."""

from __future__ import annotations

from dataclasses import dataclass, field

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.execution import Outcome
from kernelbridge.workspace.cells.interrupts import Reports
from kernelbridge.workspace.cells.queue import Job
from kernelbridge.workspace.session_state import RunningCell


@dataclass(frozen=True, slots=True)
class LeftCell:
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
