"""The shells of an earlier server, which nobody can speak to any more: their end is told once, when it is certain."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.session_state import RunningCommand
from kernelbridge.workspace.states import KernelEvent, WorkspaceEvent

LossCause = Literal["shell_exited", "sandbox_lost", "session_closed"]
"""How they ended: alone, with their sandbox, or with their session."""
TellLoss = Callable[[LossCause], None]
"""Tell of the end of every terminal, and of the command that ran."""

_CAUSES: Mapping[WorkspaceEvent | KernelEvent, LossCause] = MappingProxyType(
    {
        WorkspaceEvent.STARTED: "shell_exited",  # all but the interpreter has been ended before that
        WorkspaceEvent.START_FAILED: "sandbox_lost",  # it is destroyed
        WorkspaceEvent.CLOSE: "session_closed",
    }
)

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


class LostShells:
    """Those of one session."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._tell: TellLoss | None = None

    def adopt(self, tell: TellLoss, *, sandbox_lost: bool) -> None:
        """Tell of their end when it comes, or at once if they have ended with their sandbox."""
        self._tell = tell
        if sandbox_lost:
            self._over("sandbox_lost")

    def changed(self, event: WorkspaceEvent | KernelEvent) -> None:
        """Take note of what happens to the workspace."""
        if event in _CAUSES:
            self._over(_CAUSES[event])

    def leave(self) -> None:
        """Leave the telling to another server."""
        self._tell = None

    def _over(self, cause: LossCause) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(cause)
            self._record.shells_told()
