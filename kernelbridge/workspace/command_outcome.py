"""How a terminal command ended; pure.

It is not in `shell/`, because what sends it to the client needs nothing of a shell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from kernelbridge.workspace.session_state import RunningCommand

LossCause = Literal["shell_exited", "sandbox_lost", "session_closed"]
"""Whether a shell or a terminal ended alone, with its sandbox, or with its session."""
ReportLoss = Callable[[str | None, LossCause], None]
"""Called when the terminal of this name is gone; None: all terminals, and the command that ran."""

_WHY: Mapping[LossCause, str] = MappingProxyType(
    {
        "shell_exited": "the server ended while it ran, and so it was ended",
        "sandbox_lost": "the server ended while it ran, and then its sandbox",
        "session_closed": "the server ended while it ran, and then its session was closed",
    }
)


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """How a command ended and what it wrote."""

    output: str
    """What a terminal would have shown."""
    exit_code: int | None
    """128 + n for an end by signal n, as shells count; None when the command was killed with its shell."""
    cwd: str | None
    """The shell's working directory; None when the shell is gone."""
    duration_ms: float
    truncated: dict[str, Any] | None = None
    """`{"bytes": left out of `output`, "kept": "head and tail", "at": character where they are missing}`, and `file`
    and `fileComplete` when the whole output is in a file of the workspace."""
    cause: str | None = None
    """Why it did not end by itself: `timeout`, `interrupted`, `shell_exited`, `out_of_memory`, `process_limit`."""
    state_preserved: bool = True
    """False when the shell is gone, and with it its directory, variables, functions and background jobs."""
    hint: str | None = None
    """What to do instead of a command that cannot work here."""
    late_output: str = ""
    """What background jobs of earlier commands wrote since the last outcome."""
    json: Mapping[str, Any] = field(default_factory=dict)
    """Long texts that are written as JSON already, by the names of their fields."""


def lost_command(command: RunningCommand, cause: LossCause) -> CommandOutcome:
    """Return the outcome of an earlier server's command that is gone: nobody knows how it ended."""
    return CommandOutcome(
        output="",
        exit_code=None,
        cwd=None,
        duration_ms=max(0.0, time.time() - command.since) * 1000,
        cause=cause,
        state_preserved=False,
        hint=f"{_WHY[cause]}; what it wrote is lost, and how far it came is not known: look before it is sent again",
    )
