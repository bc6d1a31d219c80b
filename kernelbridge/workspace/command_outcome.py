"""How a terminal command ended; pure.

It is apart from `shell/`, which makes it, for what looks at it on the way to the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LossCause = Literal["shell_exited", "sandbox_lost", "session_closed"]
"""How they ended: alone, with their sandbox, or with their session."""


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """How a command ended and what it wrote."""

    output: str
    """What a terminal would have shown."""
    exit_code: int | None
    """128 + n for an end by signal n, as shells count; None when the command was killed with its shell."""
    cwd: str | None
    """Where the shell is now; None when it is gone."""
    duration_ms: float
    truncated: dict[str, Any] | None = None
    """`{"bytes": left out of `output`, "kept": "head and tail", "at": character where they are missing}`, and `file`
    and `fileComplete` when all of it is in a file of the workspace."""
    cause: str | None = None
    """Why it did not end by itself: `timeout`, `interrupted`, `shell_exited`, `out_of_memory`, `process_limit`."""
    state_preserved: bool = True
    """False when the shell is gone, and with it its directory, variables, functions and background jobs."""
    hint: str | None = None
    """What to do instead of a command that cannot work here."""
    late_output: str = ""
    """What background jobs of earlier commands wrote since the last outcome."""
    json: Mapping[str, Any] = field(default_factory=dict)
    """Those of its long texts that are written as JSON already, by their names here."""
