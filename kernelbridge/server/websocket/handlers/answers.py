"""From what the workspace says to what the client gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from msgspec import UNSET, UnsetType, convert

from kernelbridge.errors import HOLDS_TOO_MUCH, BadRequest, KernelBridgeError, TooMuchBuffered
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.protocol.base import Cause, Truncated
from kernelbridge.protocol.base import timestamp as timestamp  # noqa: PLC0414  for those who make answers by hand
from kernelbridge.protocol.cells import ExecutionResult
from kernelbridge.protocol.files import SaveResult
from kernelbridge.protocol.messages import ErrorMessage
from kernelbridge.protocol.terminals import TerminalOutput
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.files.store import Saved


def execution_result(
    outcome: Outcome,
    session_id: str,
    request_id: str | UnsetType,
    *,
    seq: int | UnsetType = UNSET,
    events_left_out: int = 0,
) -> ExecutionResult:
    """Answer `execute_code`; for a streamed one with its `seq` and the bytes that its events left out."""
    return ExecutionResult(
        success=outcome.success,
        output=outcome.json.get("output", outcome.output),
        error=outcome.error,
        timestamp=timestamp(),
        session_id=session_id,
        request_id=request_id,
        seq=seq,
        # No text twice: a large one would fill half of a frame with its copy.
        stdout=UNSET if outcome.stdout == outcome.output else outcome.json.get("stdout", outcome.stdout),
        stderr=outcome.json.get("stderr", outcome.stderr) or UNSET,
        results=outcome.json.get("results", outcome.results),
        traceback=outcome.json.get("traceback", outcome.traceback) or UNSET,
        execution_count=UNSET if outcome.execution_count is None else outcome.execution_count,
        duration_ms=round(outcome.duration_ms, 3),
        cpu_ms=UNSET if outcome.cpu_ms is None else round(outcome.cpu_ms, 3),
        late_output=outcome.late_output or UNSET,
        hint=outcome.hint or UNSET,
        truncated=truncated(outcome.truncated, events_left_out),
        cause=_cause(outcome.cause),
        exit_code=UNSET if outcome.exit_code is None else outcome.exit_code,
        signal=outcome.signal or UNSET,
        state_preserved=UNSET if outcome.state_preserved and outcome.cause is None else outcome.state_preserved,
    )


def terminal_output(
    outcome: CommandOutcome,
    session_id: str,
    request_id: str | UnsetType,
    *,
    seq: int | UnsetType = UNSET,
    events_left_out: int = 0,
) -> TerminalOutput:
    """Answer `terminal_command`; for a streamed one as above."""
    return TerminalOutput(
        output=outcome.json.get("output", outcome.output),
        session_id=session_id,
        request_id=request_id,
        seq=seq,
        exit_code=UNSET if outcome.exit_code is None else outcome.exit_code,
        cwd=outcome.cwd or UNSET,
        duration_ms=round(outcome.duration_ms, 3),
        truncated=truncated(outcome.truncated, events_left_out),
        cause=_cause(outcome.cause),
        state_preserved=UNSET if outcome.state_preserved and outcome.cause is None else outcome.state_preserved,
        hint=outcome.hint or UNSET,
        late_output=outcome.late_output or UNSET,
    )


def saved(result: Saved, filename: str, session_id: str, request_id: str | UnsetType) -> SaveResult:
    """Answer a `save_file` that succeeded."""
    return SaveResult(
        success=True,
        message="File saved successfully",
        filename=filename,
        session_id=session_id,
        request_id=request_id,
        size=result.size,
        sha256=result.sha256,
    )


def not_saved(error: KernelBridgeError, filename: str, session_id: str, request_id: str | UnsetType) -> SaveResult:
    """Answer a `save_file` that failed."""
    return SaveResult(
        success=False,
        message=str(error),
        filename=filename,
        session_id=session_id,
        request_id=request_id,
        code=error.code,
    )


def error_message(error: KernelBridgeError, session_id: str | None, request_id: str | UnsetType) -> ErrorMessage:
    """Tell of a failure that is not the user's code."""
    return ErrorMessage(
        message=error.message,
        error=error.reason or error.message,
        session_id=session_id,
        code=error.code,
        retryable=error.retryable,
        request_id=request_id,
    )


def frame_too_large(limit: int) -> ErrorMessage:
    """Tell of an oversized frame, before the connection is closed with 1009."""
    return error_message(
        BadRequest(
            "The frame is too large",
            f"expected at most {limit} bytes; the connection is closed",
            code="frame_too_large",
        ),
        None,
        UNSET,
    )


def message_timeout(limit: float) -> ErrorMessage:
    """Tell of a message that was not finished in time, before the connection is closed with 1008."""
    return error_message(
        BadRequest(
            "The message was not finished in time",
            f"expected all of it within {limit:g} s (--message-timeout); large files may be sent by HTTP, which takes"
            " as long as it takes. The connection is closed",
            code="message_timeout",
        ),
        None,
        UNSET,
    )


def too_much_buffered() -> ErrorMessage:
    """Tell whoever holds most of a budget that is used up, before the connection is closed with 1013."""
    return error_message(
        TooMuchBuffered("Too much is held for this client", f"{HOLDS_TOO_MUCH}. The connection is closed"), None, UNSET
    )


def binary_frame() -> ErrorMessage:
    """Tell of a binary frame."""
    return error_message(
        BadRequest("The frame is binary", "expected a text frame with one JSON object", code="binary_frame"),
        None,
        UNSET,
    )


def internal_error(session_id: str | None, request_id: str | UnsetType) -> ErrorMessage:
    """Tell of a bug of the server."""
    return error_message(
        KernelBridgeError("The server failed to handle the message", "the server's log says why"),
        session_id,
        request_id,
    )


def truncated(left_out: Mapping[str, Any] | None, events_left_out: int = 0) -> Truncated | UnsetType:
    """Say what a run's result left out, and its events in `events_left_out` bytes."""
    if events_left_out:
        left_out = {**(left_out or {"bytes": 0, "kept": "all", "at": 0}), "events": events_left_out}
    return UNSET if left_out is None else convert(left_out, Truncated)


def _cause(cause: str | None) -> Cause | UnsetType:
    return UNSET if cause is None else cast("Cause", cause)
