"""One cell in the queue of a session, and the answers to cells that never run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Listener
from kernelbridge.workspace.cells.interrupts import Report

ExecutionDone = Callable[[Outcome | KernelBridgeError], None]

CHARACTERS = 32 << 20
"""Length of the code that may wait in a session: so either few requests or small ones."""


@dataclass(frozen=True, slots=True)
class Job:
    """A cell, and where its outcome goes."""

    cell: Cell
    done: ExecutionDone
    """Called once, with the outcome or the error that kept the cell from running."""
    listener: Listener | None = None
    """Called with events while it runs. A cell that may ask for input has one."""
    timeout: float | None = None
    """Seconds that it may run, without the time in which it waits for input; None: the session's limit."""
    report: Report | None = None
    """Called with each step by which it is ended when its time is over."""
    request_id: str | None = None
    """The `requestId`, for a later server, which may have to answer."""

    @property
    def text(self) -> str:
        """Its code."""
        return self.cell.code


def _never_ran(cause: str, why: str) -> Outcome:
    return Outcome.ended(cause, f"{why} before the cell ran; it never ran")


NEVER_INTERRUPTED = _never_ran("interrupted", "Interrupted: the waiting cells were cancelled")
NEVER_RESTARTED = _never_ran("kernel_restarted", "KernelRestarted: the interpreter was restarted")
NEVER_CLOSED = Outcome.ended("session_closed", "SessionClosed: the session was closed before the cell ran")
