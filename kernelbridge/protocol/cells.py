"""Messages about the interpreter: cells, their live output, input, and control."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from kernelbridge.protocol.base import (
    Cause,
    Count,
    Event,
    Message,
    Reply,
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
    """Whether to send events while it runs; the connection's default when absent."""
    timeout: Seconds | None = None
    """Longest time that it may run; the server's default when absent."""
    silent: bool = False
    """Run it without output, count and history. Errors are still reported."""
    store_history: bool = True
    allow_stdin: bool = False
    """Whether `input()` may send an `input_request`; otherwise it fails at once."""


class InputReply(Request, frozen=True, tag="input_reply"):
    """Answer the session's open `input_request`."""

    session_id: SessionId
    value: str
    input_id: str | None = None
    """The `inputId` of the request that this answers; the one that waits when absent."""
    request_id: RequestId | None = None


class Interrupt(Request, frozen=True, tag="interrupt"):
    """Interrupt what runs."""

    session_id: SessionId
    target: Literal["execution", "terminal"] = "execution"
    queued: bool = False
    """Whether requests that wait behind it are ended too."""
    jobs: bool = False
    """For the terminal: whether background jobs of its commands are ended too."""
    run_id: RequestId | None = None
    """The `requestId` of the only run that is meant; if it waits, it is ended and does not run."""
    escalate: bool = True
    """False: only signal a running cell, as Ctrl-C does, and let it go on if it catches that."""
    request_id: RequestId | None = None


class RestartKernel(Request, frozen=True, tag="restart_kernel"):
    """Start a new interpreter for the session; every pending execution ends."""

    session_id: SessionId
    request_id: RequestId | None = None


class Complete(Request, frozen=True, tag="complete"):
    """Ask for completions of `code` at `cursor`."""

    session_id: SessionId
    code: str
    cursor: Count | None = None
    """Position in characters (Unicode code points); the end when absent."""
    request_id: RequestId | None = None


class Inspect(Request, frozen=True, tag="inspect"):
    """Ask for information about the name at `cursor`."""

    session_id: SessionId
    code: str
    cursor: Count | None = None
    detail: Literal[0, 1] = 0
    """1 includes the source code if it is available."""
    request_id: RequestId | None = None


class IsComplete(Request, frozen=True, tag="is_complete"):
    """Ask whether `code` can be run as it is."""

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
    """What a terminal would have shown, in order. It is kept if the code fails."""
    error: str | None
    """`<Name>: <message>` on one line, or null."""
    timestamp: str
    session_id: str
    request_id: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    """Its place among the session's events, when the run was streamed."""
    stdout: str | UnsetType = UNSET
    """As it was written; absent if it is the same as `output`."""
    stderr: str | UnsetType = UNSET
    """As it was written; absent if it is empty."""
    results: list[Any] | UnsetType = UNSET
    """`MimeBundle`s."""
    traceback: str | UnsetType = UNSET
    execution_count: int | UnsetType = UNSET
    duration_ms: float | UnsetType = UNSET
    cpu_ms: float | UnsetType = UNSET
    late_output: str | UnsetType = UNSET
    """What background threads of earlier executions wrote since the last result."""
    hint: str | UnsetType = UNSET
    """What to do instead, if the code failed because the sandbox has no network, no terminal, or no room for more
    processes."""
    truncated: Truncated | UnsetType = UNSET
    cause: Cause | UnsetType = UNSET
    exit_code: int | UnsetType = UNSET
    """The exit code of the kernel's process, if it ended by itself."""
    signal: str | UnsetType = UNSET
    """The signal that ended the kernel, such as `SIGSEGV`."""
    state_preserved: bool | UnsetType = UNSET
    """False if the interpreter's variables were lost before or during this run."""
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
    """The cell displayed something, or its last expression has a value."""

    data: dict[str, Any]
    """A MIME bundle."""
    metadata: dict[str, Any]
    display_id: str | UnsetType = UNSET
    result: bool | UnsetType = UNSET
    """True for the value of the cell's last expression."""
    left_out: int | UnsetType = UNSET


class UpdateDisplayData(Event, frozen=True, tag="update_display_data", kw_only=True):
    """A display with this `displayId` changed, wherever it is shown."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str
    left_out: int | UnsetType = UNSET


class ClearOutput(Event, frozen=True, tag="clear_output", kw_only=True):
    """Remove the output of the cell; with `wait`, when its next output comes."""

    wait: bool
    left_out: int | UnsetType = UNSET


class InputRequest(Event, frozen=True, tag="input_request", kw_only=True):
    """The cell waits for an `input_reply`."""

    prompt: str
    password: bool
    """Whether the typed text must not be shown."""
    input_id: str


class Interrupted(Event, frozen=True, tag="interrupted", kw_only=True):
    """One step of an `interrupt`; the last one has `done`."""

    target: Literal["execution", "terminal"]
    step: Literal["none", "sigint", "process_group", "kill", "restart"]
    """`none`: nothing ran."""
    done: bool
    state_preserved: bool | UnsetType = UNSET
    """With `done`: whether the interpreter, or the shell, still has its state."""
    ended: int | UnsetType = UNSET
    """With `done`: how many waiting requests were ended, when `queued` or `runId` asked for that."""
    warnings: Warnings | UnsetType = UNSET


class KernelRestarted(Event, frozen=True, tag="kernel_restarted", kw_only=True):
    """The session has a new interpreter; variables are lost."""

    cause: Literal["requested", "interrupted"]
    ended: int
    """How many pending executions it ended."""
    warnings: Warnings | UnsetType = UNSET


class CompleteReply(Reply, frozen=True, tag="complete_reply", kw_only=True):
    """The answer to `complete`."""

    matches: list[str]
    cursor_start: int
    """The matches replace `code[cursorStart:cursorEnd]`, in characters."""
    cursor_end: int
    metadata: dict[str, Any] | UnsetType = UNSET


class InspectReply(Reply, frozen=True, tag="inspect_reply", kw_only=True):
    """The answer to `inspect`."""

    found: bool
    text: str
    """Plain text; empty if nothing was found."""
    data: dict[str, Any] | UnsetType = UNSET
    """A MIME bundle, as the kernel sent it."""


class IsCompleteReply(Reply, frozen=True, tag="is_complete_reply", kw_only=True):
    """The answer to `is_complete`."""

    status: Literal["complete", "incomplete", "invalid", "unknown"]
    indent: str | UnsetType = UNSET
    """What the next line should begin with, if `incomplete`."""
