"""Messages about the interpreter: cells, their live output, questions and control."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from kernelbridge.protocol.base import (
    Cause,
    Count,
    Event,
    Message,
    Request,
    RequestId,
    Seconds,
    SessionId,
    Truncated,
    Warnings,
)

CellFilename = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=1024,
        pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)",
        description="The name under which the code is compiled; nothing is written to disk",
    ),
]

# -- client to server ---------------------------------------------------------


class ExecuteCode(Request, frozen=True, tag="execute_code"):
    """Run `code` in the session's warm interpreter as a notebook cell would."""

    session_id: SessionId
    code: str
    filename: CellFilename | None = None
    """`main.py` when absent."""
    request_id: RequestId | None = None
    stream: bool | None = None
    """Whether to tell of the run while it happens; the connection's default when absent."""
    timeout: Seconds | None = None
    """Longest run; the server's default when absent."""
    silent: bool = False
    """Run it without output, count and history; errors are still told."""
    store_history: bool = True
    allow_stdin: bool = False
    """Whether `input()` may ask with an `input_request`; otherwise it fails at once."""


class InputReply(Request, frozen=True, tag="input_reply"):
    """Answer the session's waiting `input_request`."""

    session_id: SessionId
    value: str
    input_id: str | None = None
    """The `inputId` of the request that this answers; whichever waits when absent."""
    request_id: RequestId | None = None


class Interrupt(Request, frozen=True, tag="interrupt"):
    """Interrupt what runs."""

    session_id: SessionId
    target: Literal["execution", "terminal"] = "execution"
    queued: bool = False
    """Whether what waits behind it is ended too."""
    jobs: bool = False
    """Of the terminal: whether all that its commands have left running is ended too."""
    request_id: RequestId | None = None


class RestartKernel(Request, frozen=True, tag="restart_kernel"):
    """Give the session a new interpreter; every pending execution ends."""

    session_id: SessionId
    request_id: RequestId | None = None


class Complete(Request, frozen=True, tag="complete"):
    """Ask how `code` could go on at `cursor`."""

    session_id: SessionId
    code: str
    cursor: Count | None = None
    """Position in characters (Unicode code points); the end when absent."""
    request_id: RequestId | None = None


class Inspect(Request, frozen=True, tag="inspect"):
    """Ask what is known of the name at `cursor`."""

    session_id: SessionId
    code: str
    cursor: Count | None = None
    detail: Literal[0, 1] = 0
    """1 includes the source where there is some."""
    request_id: RequestId | None = None


class IsComplete(Request, frozen=True, tag="is_complete"):
    """Ask whether `code` is ready to be run as it is."""

    session_id: SessionId
    code: str
    request_id: RequestId | None = None


# -- server to client ---------------------------------------------------------


class MimeBundle(Struct, frozen=True, rename="camel"):
    """One rich result or display (Jupyter messaging, `display_data`)."""

    type: Literal["execute_result", "display_data"]
    data: dict[str, Any]
    metadata: dict[str, Any]


class ExecutionResult(Message, frozen=True, tag="execution_result"):
    """The answer to `execute_code`."""

    success: bool
    output: str
    """What a terminal would have shown, in order; kept when the code then fails."""
    error: str | None
    """`<Name>: <message>` on one line, or null."""
    timestamp: str
    session_id: str
    request_id: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    """Its place among the session's events, when the run was streamed."""
    stdout: str | UnsetType = UNSET
    """As it was written; left out when it is the same as `output`."""
    stderr: str | UnsetType = UNSET
    """As it was written; left out when it is empty."""
    results: list[Any] | UnsetType = UNSET
    """`MimeBundle`s."""
    traceback: str | UnsetType = UNSET
    execution_count: int | UnsetType = UNSET
    duration_ms: float | UnsetType = UNSET
    cpu_ms: float | UnsetType = UNSET
    late_output: str | UnsetType = UNSET
    """What background threads of earlier executions wrote since the last result."""
    hint: str | UnsetType = UNSET
    """What to do instead, where the code or a program in it failed because a sandbox has no network, no terminal, or no
    room for more processes."""
    truncated: Truncated | UnsetType = UNSET
    cause: Cause | UnsetType = UNSET
    exit_code: int | UnsetType = UNSET
    """That of the kernel's process, when it ended by itself."""
    signal: str | UnsetType = UNSET
    """The signal that ended the kernel, e.g. `SIGSEGV`."""
    state_preserved: bool | UnsetType = UNSET
    """False when the interpreter's variables were lost before or during this run."""
    warnings: Warnings | UnsetType = UNSET


class ExecutionStarted(Event, frozen=True, tag="execution_started", kw_only=True):
    """The cell has begun to run."""

    execution_count: int | UnsetType = UNSET
    timestamp: str


class ExecutionOutput(Event, frozen=True, tag="execution_output", kw_only=True):
    """The cell wrote something."""

    stream: Literal["stdout", "stderr"]
    text: str
    """As written: with escape sequences and carriage returns."""
    left_out: int | UnsetType = UNSET
    """Bytes of the run's events that are missing before this one, because the client read too slowly."""


class DisplayData(Event, frozen=True, tag="display_data", kw_only=True):
    """The cell showed something rich, or gave a value."""

    data: dict[str, Any]
    """A MIME bundle."""
    metadata: dict[str, Any]
    display_id: str | UnsetType = UNSET
    result: bool | UnsetType = UNSET
    """True for the value of the cell's last expression."""
    left_out: int | UnsetType = UNSET


class UpdateDisplayData(Event, frozen=True, tag="update_display_data", kw_only=True):
    """What is shown under `displayId` changed, wherever it is shown."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str
    left_out: int | UnsetType = UNSET


class ClearOutput(Event, frozen=True, tag="clear_output", kw_only=True):
    """Forget what the cell has shown; with `wait`, when its next output comes."""

    wait: bool
    left_out: int | UnsetType = UNSET


class InputRequest(Event, frozen=True, tag="input_request", kw_only=True):
    """The cell waits for an `input_reply`."""

    prompt: str
    password: bool
    """Whether what is typed must not be shown."""
    input_id: str


class Interrupted(Event, frozen=True, tag="interrupted", kw_only=True):
    """How far an `interrupt` has gone: one for each step, the last with `done`."""

    target: Literal["execution", "terminal"]
    step: Literal["none", "sigint", "process_group", "kill", "restart"]
    """`none`: nothing ran."""
    done: bool
    state_preserved: bool | UnsetType = UNSET
    """With `done`: whether the interpreter, or the shell, still has its state."""
    ended: int | UnsetType = UNSET
    """With `done`: how many waiting requests were ended, when `queued` asked for that."""
    warnings: Warnings | UnsetType = UNSET


class KernelRestarted(Event, frozen=True, tag="kernel_restarted", kw_only=True):
    """The session has a new interpreter; variables are lost."""

    cause: Literal["requested", "interrupted"]
    ended: int
    """How many pending executions were ended by it."""
    warnings: Warnings | UnsetType = UNSET


class CompleteReply(Message, frozen=True, tag="complete_reply", kw_only=True):
    """The answer to `complete`."""

    session_id: str
    request_id: str | UnsetType = UNSET
    matches: list[str]
    cursor_start: int
    """The matches replace `code[cursorStart:cursorEnd]`, in characters."""
    cursor_end: int
    metadata: dict[str, Any] | UnsetType = UNSET
    warnings: Warnings | UnsetType = UNSET


class InspectReply(Message, frozen=True, tag="inspect_reply", kw_only=True):
    """The answer to `inspect`."""

    session_id: str
    request_id: str | UnsetType = UNSET
    found: bool
    text: str
    """Plain text; empty when nothing was found."""
    data: dict[str, Any] | UnsetType = UNSET
    """A MIME bundle, as the kernel gave it."""
    warnings: Warnings | UnsetType = UNSET


class IsCompleteReply(Message, frozen=True, tag="is_complete_reply", kw_only=True):
    """The answer to `is_complete`."""

    session_id: str
    request_id: str | UnsetType = UNSET
    status: Literal["complete", "incomplete", "invalid", "unknown"]
    indent: str | UnsetType = UNSET
    """What the next line should begin with, when `incomplete`."""
    warnings: Warnings | UnsetType = UNSET
