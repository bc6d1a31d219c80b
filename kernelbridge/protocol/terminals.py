"""Messages about the persistent shell and interactive terminals."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from kernelbridge.protocol.base import (
    Cause,
    Event,
    Message,
    Request,
    RequestId,
    Seconds,
    SessionId,
    Truncated,
    Warnings,
)

TerminalId = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$(?!\n)", description="1-64 characters of letters, digits, '.', '_', '-'"),
]
Cells = Annotated[int, Meta(ge=1, le=1000, description="Rows or columns, 1 to 1000")]

# -- client to server ---------------------------------------------------------


class TerminalCommand(Request, frozen=True, tag="terminal_command"):
    """Run `command` in the session's persistent shell."""

    session_id: SessionId
    command: str
    request_id: RequestId | None = None
    stream: bool | None = None
    """Whether to send its output while it runs; the connection's default when absent."""
    timeout: Seconds | None = None
    """Longest time that it may run; the server's default when absent."""


class OpenTerminal(Request, frozen=True, tag="open_terminal"):
    """Open an interactive terminal, or attach to one that is open."""

    session_id: SessionId
    rows: Cells = 24
    cols: Cells = 80
    terminal_id: TerminalId | None = None
    """The name of the terminal. If one of this name is open, its latest output is sent again."""
    request_id: RequestId | None = None


class TerminalInput(Request, frozen=True, tag="terminal_input"):
    """Type `data` into a terminal."""

    session_id: SessionId
    terminal_id: TerminalId
    data: str
    request_id: RequestId | None = None


class TerminalResize(Request, frozen=True, tag="terminal_resize"):
    """Set the size of a terminal."""

    session_id: SessionId
    terminal_id: TerminalId
    rows: Cells
    cols: Cells
    request_id: RequestId | None = None


class CloseTerminal(Request, frozen=True, tag="close_terminal"):
    """End a terminal and all processes in it."""

    session_id: SessionId
    terminal_id: TerminalId
    request_id: RequestId | None = None


# -- server to client ---------------------------------------------------------


class TerminalOutput(Message, frozen=True, tag="terminal_output"):
    """The answer to `terminal_command`."""

    output: str
    """Stdout and stderr as a terminal shows them, plain text."""
    session_id: str
    request_id: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    """Its place among the session's events, if the command was streamed."""
    exit_code: int | UnsetType = UNSET
    cwd: str | UnsetType = UNSET
    duration_ms: float | UnsetType = UNSET
    truncated: Truncated | UnsetType = UNSET
    cause: Cause | UnsetType = UNSET
    state_preserved: bool | UnsetType = UNSET
    """False if the shell's directory, variables and jobs were lost before or during this command."""
    hint: str | UnsetType = UNSET
    """What to do instead, if the command cannot work here (full-screen programs need `open_terminal`), or what happened
    to it."""
    late_output: str | UnsetType = UNSET
    """What background jobs of earlier commands wrote since the last result."""
    warnings: Warnings | UnsetType = UNSET


class TerminalChunk(Event, frozen=True, tag="terminal_chunk", kw_only=True):
    """A streamed command wrote something."""

    text: str
    """As written, with escape sequences. Lines end with a line feed only, and no character is split."""
    left_out: int | UnsetType = UNSET
    """Bytes of the command's events that are missing before this one, because the client read too slowly."""


class TerminalOpened(Event, frozen=True, tag="terminal_opened", kw_only=True):
    """The answer to `open_terminal`."""

    terminal_id: str
    rows: int
    cols: int
    reattached: bool
    """Whether it was open before. Then its latest output follows as `terminal_data` with `replay`."""
    warnings: Warnings | UnsetType = UNSET


class TerminalData(Event, frozen=True, tag="terminal_data", kw_only=True):
    """Output of an interactive terminal, for a terminal emulator."""

    terminal_id: str
    data: str
    """Whole characters. Bytes that are not UTF-8 become U+FFFD."""
    replay: bool | UnsetType = UNSET
    """True for output from before this connection attached."""
    left_out: int | UnsetType = UNSET
    """Bytes that are missing before this one."""


class TerminalClosed(Event, frozen=True, tag="terminal_closed", kw_only=True):
    """A terminal has ended, or this connection was detached from it."""

    terminal_id: str
    exit_code: int | UnsetType = UNSET
    """Exit code of its shell, if it is known; 128 + n if signal n ended it."""
    cause: Literal["exited", "closed", "session_closed", "out_of_memory", "sandbox_lost", "too_slow"]
    """`too_slow`: this connection was detached because it did not read the output. The terminal is still open; open it
    again to attach."""
    warnings: Warnings | UnsetType = UNSET
