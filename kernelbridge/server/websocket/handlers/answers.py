"""What the answers of several handlers have in common: errors, causes, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from msgspec import UNSET, UnsetType, convert

from kernelbridge.errors import KernelBridgeError
from kernelbridge.protocol.base import Cause, Truncated
from kernelbridge.protocol.messages import ErrorMessage


def error_message(
    error: KernelBridgeError, session_id: str | None = None, request_id: str | UnsetType = UNSET
) -> ErrorMessage:
    """Return the `error` message for a failure that is not the user's code."""
    return ErrorMessage(
        message=error.message,
        error=error.reason or error.message,
        session_id=session_id,
        code=error.code,
        retryable=error.retryable,
        request_id=request_id,
    )


def internal_error(session_id: str | None, request_id: str | UnsetType) -> ErrorMessage:
    """Return the `error` message for a bug of the server."""
    error = KernelBridgeError("The server failed to handle the message", "the server's log says why")
    return error_message(error, session_id, request_id)


def truncated(left_out: Mapping[str, Any] | None, events_left_out: int = 0) -> Truncated | UnsetType:
    """Return what a run's result left out, and how many bytes its events left out."""
    if events_left_out:
        left_out = {**(left_out or {"bytes": 0, "kept": "all", "at": 0}), "events": events_left_out}
    return UNSET if left_out is None else convert(left_out, Truncated)


def cause(name: str | None) -> Cause | UnsetType:
    """Return why a run was ended, as the protocol has it."""
    return UNSET if name is None else cast("Cause", name)
