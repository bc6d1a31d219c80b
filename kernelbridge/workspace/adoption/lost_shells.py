"""The shells of an earlier server that are gone: their end is told once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from kernelbridge.workspace.command_outcome import CommandOutcome, LossCause
from kernelbridge.workspace.session_state import RunningCommand

TellLoss = Callable[[str | None, LossCause], None]
"""Tell of the end of the terminal of this name; None: of every terminal, and of the command that ran."""

_WHY: Mapping[LossCause, str] = MappingProxyType(
    {
        "shell_exited": "the server ended while it ran, and so it was ended",
        "sandbox_lost": "the server ended while it ran, and then its sandbox",
        "session_closed": "the server ended while it ran, and then its session was closed",
    }
)


def lost_command(command: RunningCommand, cause: LossCause) -> CommandOutcome:
    """Give what is known of how it ended."""
    return CommandOutcome(
        output="",
        exit_code=None,
        cwd=None,
        duration_ms=max(0.0, time.time() - command.since) * 1000,
        cause=cause,
        state_preserved=False,
        hint=f"{_WHY[cause]}; what it wrote is lost, and how far it came is not known: look before it is sent again",
    )
