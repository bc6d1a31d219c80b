"""The shells of an earlier server that have ended: their end is reported once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from kernelbridge.workspace.command_outcome import CommandOutcome, LossCause
from kernelbridge.workspace.session_state import RunningCommand

TellLoss = Callable[[str | None, LossCause], None]
"""Report the end of the terminal of this id; None: of every terminal and of the command that ran."""

_WHY: Mapping[LossCause, str] = MappingProxyType(
    {
        "shell_exited": "the server ended while it ran, and the command was ended with it",
        "sandbox_lost": "the server ended while it ran, and then its sandbox ended",
        "session_closed": "the server ended while it ran, and then its session was closed",
    }
)


def lost_command(command: RunningCommand, cause: LossCause) -> CommandOutcome:
    """Return the outcome of a command whose end is not known."""
    return CommandOutcome(
        output="",
        exit_code=None,
        cwd=None,
        duration_ms=max(0.0, time.time() - command.since) * 1000,
        cause=cause,
        state_preserved=False,
        hint=f"{_WHY[cause]}; its output is lost, and how far it got is not known: check before you send it again",
    )
