"""Every message of the protocol, one struct each; the wire names are camelCase.

A field whose default is `UNSET` is additive: it is left out of the frame unless
it says something. All other fields are always present, `null` included.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

PROTOCOL_VERSION = "1.0"

SessionId = Annotated[
    str,
    Meta(
        # The trailing look-ahead: in Python `$` also matches before a final newline.
        pattern=r"^[A-Za-z0-9._-]{1,128}$(?!\n)",
        description="1-128 characters of letters, digits, '.', '_', '-'",
    ),
]
RequestId = Annotated[str, Meta(max_length=256, description="Echoed in every answer that the request causes")]
CellFilename = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=1024,
        pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)",
        description="The name under which the code is compiled; nothing is written to disk",
    ),
]

Cause = Literal["timeout", "kernel_died", "out_of_memory", "session_closed", "shell_exited"]
"""Why a run was ended before it finished by itself."""


class _Message(Struct, frozen=True, rename="camel", tag_field="type"):
    pass


# -- client to server ---------------------------------------------------------


class ExecuteCode(_Message, frozen=True, tag="execute_code"):
    """Run `code` in the session's warm interpreter as a notebook cell would."""

    session_id: SessionId
    code: str
    filename: CellFilename | None = None
    """`main.py` when absent."""
    request_id: RequestId | None = None


class TerminalCommand(_Message, frozen=True, tag="terminal_command"):
    """Run `command` in the session's persistent shell."""

    session_id: SessionId
    command: str
    request_id: RequestId | None = None


class SaveFile(_Message, frozen=True, tag="save_file"):
    """Write a workspace file; parent directories are made."""

    session_id: SessionId
    filename: str
    content: str
    encoding: Literal["utf-8", "base64"] | None = None
    """`utf-8` when absent; `base64` for bytes."""
    request_id: RequestId | None = None


class Ping(_Message, frozen=True, tag="ping"):
    """Ask for a `pong`."""

    request_id: RequestId | None = None


ClientMessage = ExecuteCode | TerminalCommand | SaveFile | Ping


# -- server to client ---------------------------------------------------------


class Connected(_Message, frozen=True, tag="connected", kw_only=True):
    """The first frame after the upgrade."""

    connection_id: str
    user_id: str | None
    protocol_version: str = PROTOCOL_VERSION
    timestamp: str
    warning: str | UnsetType = UNSET
    """What the user must know before trusting the server, e.g. that code runs unisolated."""


class Truncated(Struct, frozen=True, rename="camel"):
    """What a bounded answer left out."""

    bytes: int
    """How many bytes of `output` were left out."""
    kept: str
    """Which part is in the message."""
    at: int
    """The character of `output` where they are missing."""
    stdout: int | UnsetType = UNSET
    """Bytes left out of `stdout`."""
    stderr: int | UnsetType = UNSET
    """Bytes left out of `stderr`."""
    results: int | UnsetType = UNSET
    """Bytes left out of `results`."""


class MimeBundle(Struct, frozen=True, rename="camel"):
    """One rich result or display (Jupyter messaging, `display_data`)."""

    type: Literal["execute_result", "display_data"]
    data: dict[str, Any]
    metadata: dict[str, Any]


class ExecutionResult(_Message, frozen=True, tag="execution_result"):
    """The answer to `execute_code`."""

    success: bool
    output: str
    """What a terminal would have shown, in order; kept when the code then fails."""
    error: str | None
    """`<Name>: <message>` on one line, or null."""
    timestamp: str
    session_id: str
    request_id: str | UnsetType = UNSET
    stdout: str | UnsetType = UNSET
    stderr: str | UnsetType = UNSET
    results: list[Any] | UnsetType = UNSET
    """`MimeBundle`s."""
    traceback: str | UnsetType = UNSET
    execution_count: int | UnsetType = UNSET
    duration_ms: float | UnsetType = UNSET
    cpu_ms: float | UnsetType = UNSET
    late_output: str | UnsetType = UNSET
    """What background threads of earlier executions wrote since the last result."""
    truncated: Truncated | UnsetType = UNSET
    cause: Cause | UnsetType = UNSET
    state_preserved: bool | UnsetType = UNSET
    """False when the interpreter's variables were lost before or during this run."""


class TerminalOutput(_Message, frozen=True, tag="terminal_output"):
    """The answer to `terminal_command`."""

    output: str
    """Stdout and stderr as a terminal shows them, plain text."""
    session_id: str
    request_id: str | UnsetType = UNSET
    exit_code: int | UnsetType = UNSET
    cwd: str | UnsetType = UNSET
    duration_ms: float | UnsetType = UNSET
    truncated: Truncated | UnsetType = UNSET
    cause: Cause | UnsetType = UNSET
    state_preserved: bool | UnsetType = UNSET
    """False when the shell's directory, variables and jobs were lost before or with this command."""


class SaveResult(_Message, frozen=True, tag="save_result"):
    """The answer to `save_file`; on failure the old file is intact."""

    success: bool
    message: str
    filename: str
    session_id: str
    request_id: str | UnsetType = UNSET
    size: int | UnsetType = UNSET
    """Bytes."""
    sha256: str | UnsetType = UNSET


class ErrorMessage(_Message, frozen=True, tag="error"):
    """Something failed that is not the user's code."""

    message: str
    """What failed, for a person."""
    error: str
    """The reason."""
    session_id: str | None
    code: str | UnsetType = UNSET
    """Stable, snake_case."""
    retryable: bool | UnsetType = UNSET
    request_id: str | UnsetType = UNSET


class Pong(_Message, frozen=True, tag="pong"):
    """The answer to `ping`."""

    timestamp: str
    request_id: str | UnsetType = UNSET


ServerMessage = Connected | ExecutionResult | TerminalOutput | SaveResult | ErrorMessage | Pong
