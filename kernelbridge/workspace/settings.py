"""The settings of all workspaces of a server; pure."""

from __future__ import annotations

from dataclasses import dataclass

from kernelbridge.workspace.options import Bounds


@dataclass(frozen=True, slots=True)
class WorkspaceSettings:
    """The settings of all workspaces of a server."""

    bounds: Bounds
    """Of the options of a session."""
    queue_limit: int
    """How many requests of one kind may wait in a session."""
    execution_timeout: float | None
    """Seconds for one cell or command; None for no limit."""
    start_timeout: float
    """Seconds until a new kernel must answer."""
    max_output: int
    """Bytes of the output of one cell or command in its result."""
    max_file: int
    """Bytes of a file that is saved by one message."""
    max_spill: int
    """Bytes of the file with the whole output, if it is larger than `max_output`; 0 for no file."""
    journal_size: int
    """Bytes of a session's latest frames that are kept for clients that resume."""
    idle_timeout: float | None = None
    """Seconds without use after which the sandbox is paused; None for never."""
    input_timeout: float | None = 300.0
    """Seconds that a cell waits for a line of input; None for no limit."""
    max_upload: int = 4 << 30
    """Bytes of a file that is uploaded by HTTP or appended to."""
