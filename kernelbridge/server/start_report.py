"""What a server says of itself when it has started: the content of the start-up screen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StartReport:
    """A server that listens, and what it stands on. All texts are one line for a person."""

    url: str
    """Where clients connect, with the port really taken: `ws://127.0.0.1:8001/ws`."""
    runtime: str
    """`docker` or `local`."""
    detail: str
    """Engine and version, or program and version."""
    isolation: str
    """What separates a workspace from the host and from the others."""
    data_dir: Path
    image: str | None = None
    """Image of the workspaces; None where the runtime has none."""
    keeps: bool = False
    """Whether its sandboxes are left to the next server when it is told to stop."""
    warning: str | None = None
    """What a user must know before they trust it."""
