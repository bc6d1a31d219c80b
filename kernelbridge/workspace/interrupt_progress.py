"""The steps by which a running cell or command is ended, as a client is told of them; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Step = Literal["none", "sigint", "process_group", "kill", "restart"]
"""`none`: nothing ran. The others are described in docs/reference."""


@dataclass(frozen=True, slots=True)
class InterruptProgress:
    """One step, when its outcome is known."""

    step: Step
    done: bool
    """Whether it is the last one."""
    state_preserved: bool | None = None
    """With `done`: whether the interpreter has its variables still, or the shell is the same."""
    ended: int | None = None
    """With `done`: how many waiting cells or commands were ended, if they were to be ended."""
