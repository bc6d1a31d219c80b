"""Messages about sessions: opening with a choice, asking, closing, and coming back."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from kernelbridge.protocol.base import Cause, Count, Event, Message, Request, RequestId, SessionId, Warnings

ImageName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=512,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$(?!\n)",
        description="A container image that the server allows",
    ),
]
KernelName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._-]{1,128}$(?!\n)",
        description="The name of a kernelspec in the image",
    ),
]

Linger = Annotated[float, Meta(ge=0, le=366 * 86400, description="Seconds, 0 or more")]
State = Literal["absent", "starting", "active", "paused", "closing"]
KernelStateName = Literal["absent", "starting", "ready", "dead", "restarting"]
Status = Literal["starting", "ready", "paused", "resumed", "restarting", "closing", "closed"]


class LimitsChoice(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What a session may use, at most what the server grants."""

    memory: Count | None = None
    """Bytes."""
    cpus: float | None = None
    pids: Count | None = None
    """Processes and threads."""


# -- client to server ---------------------------------------------------------


class OpenSession(Request, frozen=True, tag="open_session", kw_only=True):
    """Start the session's sandbox and interpreter, with a choice of what they are."""

    session_id: SessionId
    image: ImageName | None = None
    """The server's default when absent."""
    kernel: KernelName | None = None
    """`python3` when absent."""
    env: dict[str, str] | None = None
    """Environment variables for the interpreter, the shell and the terminals."""
    limits: LimitsChoice | None = None
    """The server's own when absent."""
    linger: Linger | None = None
    """Seconds that the session lives on after its last connection; the server's own when absent."""
    keep_while_running: bool | None = None
    """Whether it lives on while a cell or a command runs, whoever is connected."""
    request_id: RequestId | None = None


class SessionInfo(Request, frozen=True, tag="session_info"):
    """Ask what a session is and does; opens none."""

    session_id: SessionId
    request_id: RequestId | None = None


class ListSessions(Request, frozen=True, tag="list_sessions"):
    """Ask for the sessions of this connection's user."""

    request_id: RequestId | None = None


class CloseSession(Request, frozen=True, tag="close_session"):
    """End what runs in a session and its sandbox; the next request of the session opens it anew."""

    session_id: SessionId
    delete_files: bool = False
    request_id: RequestId | None = None


class Resume(Request, frozen=True, tag="resume"):
    """Get what a session has told since `after`, and then all that it tells."""

    session_id: SessionId
    after: Count = 0
    """The last `seq` that arrived; everything that is kept when absent."""
    request_id: RequestId | None = None


# -- server to client ---------------------------------------------------------


class LimitsInEffect(Struct, frozen=True, rename="camel"):
    """What a session may use."""

    memory: int
    """Bytes."""
    cpus: float
    pids: int


class SessionReady(Message, frozen=True, tag="session_ready", kw_only=True):
    """The answer to `open_session`."""

    session_id: str
    request_id: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    runtime: str
    """`docker` or `local`."""
    image: str | None
    """Null where the runtime has no images."""
    kernel: str
    language: str
    limits: LimitsInEffect
    linger: float
    """Seconds that the session lives on after its last connection."""
    keep_while_running: bool
    """Whether it also lives on while a cell or a command runs."""
    fresh: bool
    """Whether the interpreter was started for this: false when it ran already, with its variables."""
    created: str
    """When the session was opened; another time means that it was closed in between."""
    last_seq: int
    """The number of the session's latest event."""
    warnings: Warnings | UnsetType = UNSET


class SessionInfoReply(Message, frozen=True, tag="session_info_reply", kw_only=True):
    """The answer to `session_info`."""

    session_id: str
    request_id: str | UnsetType = UNSET
    state: State
    """Of the sandbox; `absent` also for a session that is not open."""
    kernel_state: KernelStateName
    stored: bool
    """Whether there are files of it."""
    runtime: str
    image: str | UnsetType | None = UNSET
    """This and all that follows: of an open session only."""
    kernel: str | UnsetType = UNSET
    language: str | UnsetType = UNSET
    """When it is known: once the sandbox runs."""
    limits: LimitsInEffect | UnsetType = UNSET
    linger: float | UnsetType = UNSET
    keep_while_running: bool | UnsetType = UNSET
    connections: int | UnsetType = UNSET
    """Connections that use it."""
    queued_cells: int | UnsetType = UNSET
    queued_commands: int | UnsetType = UNSET
    running_since: str | UnsetType = UNSET
    """When the running cell began; absent while none runs."""
    terminals: list[str] | UnsetType = UNSET
    """The ids of its interactive terminals."""
    waiting_input: bool | UnsetType = UNSET
    """Whether a cell waits for an `input_reply`."""
    last_seq: int | UnsetType = UNSET
    created: str | UnsetType = UNSET
    warnings: Warnings | UnsetType = UNSET


class SessionEntry(Struct, frozen=True, rename="camel", kw_only=True):
    """One session of a `list_sessions_reply`."""

    session_id: str
    state: State
    kernel_state: KernelStateName
    stored: bool
    created: str | UnsetType = UNSET
    """When it was opened, if it is open."""


class ListSessionsReply(Message, frozen=True, tag="list_sessions_reply", kw_only=True):
    """The answer to `list_sessions`, sorted by id."""

    request_id: str | UnsetType = UNSET
    sessions: list[SessionEntry]
    truncated: bool
    """Whether there are more than the server lists at once."""
    warnings: Warnings | UnsetType = UNSET


class CloseSessionReply(Message, frozen=True, tag="close_session_reply", kw_only=True):
    """The answer to `close_session`: nothing of the session runs any more."""

    session_id: str
    request_id: str | UnsetType = UNSET
    closed: bool
    """Whether it was open."""
    files_deleted: bool
    """Whether it had files, and they are gone."""
    warnings: Warnings | UnsetType = UNSET


class SeqRange(Struct, frozen=True):
    """Numbers of events, both included."""

    first: int = field(name="from")
    last: int = field(name="to")


class Resumed(Message, frozen=True, tag="resumed", kw_only=True):
    """The answer to `resume`: what is kept follows, then what happens."""

    session_id: str
    request_id: str | UnsetType = UNSET
    first: int = field(name="from")
    """The smallest number that may follow."""
    last: int = field(name="to")
    """The number of the session's latest event."""
    lost: SeqRange | UnsetType = UNSET
    """What fell out of the journal: of these only final results that nobody got may follow."""
    anew: bool | UnsetType = UNSET
    """True when the session never reached `after`: it was closed and opened again, and is told from its beginning."""
    created: str
    """When the session was opened."""
    warnings: Warnings | UnsetType = UNSET


class WhatRan(Struct, frozen=True, rename="camel", kw_only=True):
    """Something that was ended when a session was closed."""

    kind: str
    """`cell`, `command` or `terminal`."""
    request_id: str | UnsetType = UNSET
    """That of the request which started it, if it had one."""
    since: str | UnsetType = UNSET
    """When it began."""
    code: str | UnsetType = UNSET
    """The beginning of its code or command, if that is known; a terminal's id."""


class SessionStatus(Event, frozen=True, tag="session_status", kw_only=True):
    """What has become of a session; unsolicited, to those who opened or resumed it or stream."""

    status: Status
    detail: str
    """For a person."""
    cause: Cause | UnsetType = UNSET
    closed_at: str | UnsetType = UNSET
    """When the session was closed, if that was before this connection came; this and what follows."""
    what_ran: list[WhatRan] | UnsetType = UNSET
    """What ran then, and was ended."""
    answers_lost: int | UnsetType = UNSET
    """Answers and results that nobody had got, and nobody can get any more."""
