"""How a terminal command ended; pure.

A module of its own, because rooms that do not import `shell/` use it, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LossCause = Literal["shell_exited", "sandbox_lost", "session_closed"]
"""Why the shells ended: by themselves, with their sandbox, or with their session."""


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
    """Why it did not end by itself: `timeout`, `interrupted`, `shell_exited`, `out_of_memory`, `process_limit`."""
    state_preserved: bool = True
    """False if the shell has ended, with its directory, variables, functions and background jobs."""
    hint: str | None = None
    """What to do instead of a command that cannot work in a sandbox."""
    late_output: str = ""
    """What background jobs of earlier commands have written since the last outcome."""
    json: Mapping[str, Any] = field(default_factory=dict)
    """Long texts of these fields that are encoded as JSON already, by the name of the field."""
