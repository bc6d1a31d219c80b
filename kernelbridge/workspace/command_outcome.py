"""How a terminal command ended; pure.

A module of its own, because rooms that do not import `shell/` use it, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

LossCause = Literal["shell_exited", "sandbox_lost", "session_closed"]
"""Why shells ended while no server ran: by themselves, with their sandbox, or with their session."""

ReportLoss = Callable[[str | None, LossCause], None]
"""Report the end of the terminal of this id; None: of every terminal and of the command that ran."""

_HOW_LOST: Mapping[LossCause, str] = MappingProxyType(
    {
        "shell_exited": "the server ended while it ran, and the command was ended with it",
        "sandbox_lost": "the server ended while it ran, and then its sandbox ended",
        "session_closed": "the server ended while it ran, and then its session was closed",
    }
)


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """How a command ended, and its output."""

    output: str
    """As a terminal would have shown it."""
    exit_code: int | None
    """128 + n for an end by signal n, as in shells; None if the command was killed with its shell."""
    cwd: str | None
    """The shell's working directory; None if the shell has ended."""
    duration_ms: float
    truncated: dict[str, Any] | None = None
    """`{"bytes": left out of `output`, "kept": "head and tail", "at": the character where they are missing}`, and
    `file` and `fileComplete` if the whole output is in a file of the workspace."""
    cause: str | None = None
    """Why it did not end by itself: `timeout`, `interrupted`, `shell_exited`, `out_of_memory`, `process_limit`,
    `disk_limit`."""
    state_preserved: bool = True
    """False if the shell has ended, with its directory, variables, functions and background jobs."""
    hint: str | None = None
    """What to do instead of a command that cannot work in a sandbox."""
    late_output: str = ""
    """What background jobs of earlier commands have written since the last outcome."""
    oom_kills: int = 0
    """How many processes were killed meanwhile because memory was exhausted, as far as the sandbox knows."""
    json: Mapping[str, Any] = field(default_factory=dict)
    """Long texts of these fields that are encoded as JSON already, by the name of the field."""


def lost_command(since: float, cause: LossCause) -> CommandOutcome:
    """Return the outcome of an earlier server's command that is gone: how it ended is not known.

    `since` is when it began, in seconds since the epoch.
    """
    return CommandOutcome(
        output="",
        exit_code=None,
        cwd=None,
        duration_ms=max(0.0, time.time() - since) * 1000,
        cause=cause,
        state_preserved=False,
        hint=f"{_HOW_LOST[cause]}; its output is lost, and how far it got is not known: check before you send it again",
    )
