"""What every workspace of a server has in common; pure."""

from __future__ import annotations

from dataclasses import dataclass

from kernelbridge.workspace.options import Bounds


@dataclass(frozen=True, slots=True)
class WorkspaceSettings:
    """What every workspace of a server has in common."""

    bounds: Bounds
    """What a session may be opened with."""
    queue_limit: int
    """Requests of one kind that may wait in a session."""
    execution_timeout: float | None
    """Seconds for one cell or command; None for no limit."""
    start_timeout: float
    """Seconds for a kernel to answer."""
    max_output: int
    """Bytes of output kept of one cell or command."""
    max_file: int
    """Bytes of one saved file."""
    max_spill: int
    """Bytes of the file that takes the whole output of one of them when it is more; 0 for no file."""
    journal_size: int
    """Bytes of what a session told lately that are kept for those who come back."""
    idle_timeout: float | None = None
    """Seconds without use after which the sandbox is paused; None for never."""
    input_timeout: float | None = 300.0
    """Seconds that a cell waits for a line of input; None for no limit."""
    max_upload: int = 4 << 30
    """Bytes of a file that arrives by HTTP, or is appended to."""
