"""All messages of the protocol, one struct each. Field names in frames are camelCase.

A field whose default is `UNSET` is an addition to the documented protocol: it is absent if it has no value. All other
fields are always present, even if they are `null`.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from kernelbridge.protocol import cells, files, sessions, terminals
from kernelbridge.protocol.base import PROTOCOL_VERSION, Message, Request, RequestId, Warnings

Token = Annotated[str, Meta(min_length=1, max_length=8 << 10, description="A token")]


class Ping(Request, frozen=True, tag="ping"):
    """Ask for a `pong`."""

    request_id: RequestId | None = None


class Connected(Message, frozen=True, tag="connected", kw_only=True):
    """The first frame after the upgrade."""

    connection_id: str
    user_id: str | None
    protocol_version: str = PROTOCOL_VERSION
    timestamp: str
    warning: str | UnsetType = UNSET
    """What the user must know before trusting the server, such as that code runs without isolation."""


class Authenticate(Request, frozen=True, tag="authenticate"):
    """Log in, as the first message of a connection; or stay logged in, with a new token of the same user."""

    token: Token
    request_id: RequestId | None = None


class Authenticated(Message, frozen=True, tag="authenticated", kw_only=True):
    """The answer to `authenticate`."""

    user_id: str | None
    expires: str | None
    """When the connection is closed, unless another token is sent before; null if the token does not expire."""
    request_id: str | UnsetType = UNSET
    warnings: Warnings | UnsetType = UNSET


class ErrorMessage(Message, frozen=True, tag="error"):
    """Something failed other than the user's code."""

    message: str
    """What failed, for people."""
    error: str
    """The reason."""
    session_id: str | None
    code: str | UnsetType = UNSET
    """Stable, in snake_case."""
    retryable: bool | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    """Its place among the session's events, on a connection that follows the session or streams."""
    warnings: Warnings | UnsetType = UNSET


class Pong(Message, frozen=True, tag="pong"):
    """The answer to `ping`."""

    timestamp: str
    request_id: str | UnsetType = UNSET
    warnings: Warnings | UnsetType = UNSET


SessionRequest = (
    cells.ExecuteCode
    | cells.InputReply
    | cells.Interrupt
    | cells.RestartKernel
    | cells.Complete
    | cells.Inspect
    | cells.IsComplete
    | terminals.TerminalCommand
    | terminals.OpenTerminal
    | terminals.TerminalInput
    | terminals.TerminalResize
    | terminals.CloseTerminal
    | files.SaveFile
    | files.ReadFile
    | files.ListFiles
    | files.DeleteFile
    | files.RenameFile
    | files.MakeDirectory
)
"""Requests of one session. They open it."""

PrincipalRequest = (
    Authenticate
    | sessions.OpenSession
    | sessions.SessionInfo
    | sessions.ListSessions
    | sessions.CloseSession
    | sessions.Resume
)
"""Requests about a client and its sessions. Except for `open_session`, they open none."""

ClientMessage = SessionRequest | PrincipalRequest | Ping

ServerMessage = (
    Connected
    | Authenticated
    | cells.ExecutionResult
    | cells.ExecutionStarted
    | cells.ExecutionOutput
    | cells.DisplayData
    | cells.UpdateDisplayData
    | cells.ClearOutput
    | cells.InputRequest
    | cells.Interrupted
    | cells.KernelRestarted
    | cells.CompleteReply
    | cells.InspectReply
    | cells.IsCompleteReply
    | terminals.TerminalOutput
    | terminals.TerminalChunk
    | terminals.TerminalOpened
    | terminals.TerminalData
    | terminals.TerminalClosed
    | files.SaveResult
    | files.FileContent
    | files.FileList
    | files.FileResult
    | files.FileChanged
    | sessions.SessionReady
    | sessions.SessionInfoReply
    | sessions.ListSessionsReply
    | sessions.CloseSessionReply
    | sessions.Resumed
    | sessions.SessionStatus
    | sessions.EgressDenied
    | ErrorMessage
    | Pong
)
