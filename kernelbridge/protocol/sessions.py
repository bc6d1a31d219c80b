"""Messages about sessions: open with options, ask, list, close, and resume."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from kernelbridge.protocol.base import Cause, Count, Event, Message, Reply, Request, RequestId, SessionId, Warnings

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
EgressLevel = Literal["none", "packages", "open"]
State = Literal["absent", "starting", "active", "paused", "closing"]
KernelStateName = Literal["absent", "starting", "ready", "dead", "restarting"]
Status = Literal["starting", "ready", "paused", "resumed", "restarting", "closing", "closed"]


class LimitsChoice(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What a session may use; at most what the server allows."""

    memory: Count | None = None
    """Bytes."""
    cpus: float | None = None
    pids: Count | None = None
    """Processes and threads."""
    disk: Count | None = None
    """Bytes."""


# -- client to server ---------------------------------------------------------


class OpenSession(Request, frozen=True, tag="open_session", kw_only=True):
    """Start the session's sandbox and interpreter, with options."""

    session_id: SessionId
    image: ImageName | None = None
    """The server's default when absent."""
    kernel: KernelName | None = None
    """`python3` when absent."""
    env: dict[str, str] | None = None
    """Environment variables for the interpreter, the shell and the terminals."""
    limits: LimitsChoice | None = None
    """The server's defaults when absent."""
    linger: Linger | None = None
    """Seconds that the session stays open after its last connection; the server's default when absent."""
    keep_while_running: bool | None = None
    """Whether it stays open while a cell or command runs, also without a connection."""
    egress: EgressLevel | None = None
    """Which hosts its programs may reach: at most what the server allows, which is the default."""
    request_id: RequestId | None = None


class SessionInfo(Request, frozen=True, tag="session_info"):
    """Ask for the state of a session, without opening it."""

    session_id: SessionId
    request_id: RequestId | None = None


class ListSessions(Request, frozen=True, tag="list_sessions"):
    """Ask for the sessions of this connection's user."""

    request_id: RequestId | None = None


class CloseSession(Request, frozen=True, tag="close_session"):
    """End a session and everything that runs in it. Its next request opens it again."""

    session_id: SessionId
    delete_files: bool = False
    request_id: RequestId | None = None


class Resume(Request, frozen=True, tag="resume"):
    """Get the events of a session since `after`, and then all new ones."""

    session_id: SessionId
    after: Count = 0
    """The last `seq` that the client received; when absent, all events that are kept are sent."""
    request_id: RequestId | None = None
    request_ids: Annotated[list[RequestId], Meta(max_length=10_000)] | None = None
    """The requests whose answers the client still waits for."""


# -- server to client ---------------------------------------------------------


class LimitsInEffect(Struct, frozen=True, rename="camel"):
    """What a session may use."""

    memory: int
    """Bytes."""
    cpus: float
    pids: int
    disk: int | UnsetType = UNSET
    """Bytes; absent if there is no limit."""


class DiskUse(Struct, frozen=True, rename="camel", kw_only=True):
    """What a session uses of the disk, and what it may use; a limit that is absent does not exist."""

    used: int
    """Bytes."""
    limit: int | UnsetType = UNSET
    """Bytes."""
    files: int
    """Files, directories and links."""
    max_files: int | UnsetType = UNSET


class SessionReady(Reply, frozen=True, tag="session_ready", kw_only=True):
    """The answer to `open_session`."""

    seq: int | UnsetType = UNSET
    runtime: str
    """`docker` or `local`."""
    image: str | None
    """Null where the runtime has no images."""
    kernel: str
    language: str
    limits: LimitsInEffect
    linger: float
    """Seconds that the session stays open after its last connection."""
    keep_while_running: bool
    """Whether it also stays open while a cell or command runs."""
    egress: EgressLevel | UnsetType = UNSET
    """Which hosts its programs may reach; absent where the sandbox has the network of the machine."""
    fresh: bool
    """Whether the interpreter was started by this request. False if it was running already, with its variables."""
    created: str
    """When the session was opened. If it differs from an earlier answer, the session was closed in between."""
    last_seq: int
    """The `seq` of the session's latest event."""


class SessionInfoReply(Reply, frozen=True, tag="session_info_reply", kw_only=True):
    """The answer to `session_info`."""

    state: State
    """The sandbox's state; `absent` also for a session that is not open."""
    kernel_state: KernelStateName
    stored: bool
    """Whether the session has files."""
    runtime: str
    disk: DiskUse
    max_linger: float
    """The largest `linger` that the server grants, in seconds."""
    image: str | UnsetType | None = UNSET
    """This field and the following ones are there only for an open session."""
    kernel: str | UnsetType = UNSET
    language: str | UnsetType = UNSET
    """Known as soon as the sandbox runs."""
    limits: LimitsInEffect | UnsetType = UNSET
    linger: float | UnsetType = UNSET
    keep_while_running: bool | UnsetType = UNSET
    egress: EgressLevel | UnsetType = UNSET
    connections: int | UnsetType = UNSET
    """How many connections use the session."""
    queued_cells: int | UnsetType = UNSET
    queued_commands: int | UnsetType = UNSET
    running_since: str | UnsetType = UNSET
    """When the running cell began; absent if none runs."""
    terminals: list[str] | UnsetType = UNSET
    """The ids of its interactive terminals."""
    waiting_input: bool | UnsetType = UNSET
    """Whether a cell waits for an `input_reply`."""
    last_seq: int | UnsetType = UNSET
    created: str | UnsetType = UNSET


class SessionEntry(Struct, frozen=True, rename="camel", kw_only=True):
    """One session of a `list_sessions_reply`."""

    session_id: str
    state: State
    kernel_state: KernelStateName
    stored: bool
    created: str | UnsetType = UNSET
    """When it was opened; absent if it is not open."""


class ListSessionsReply(Message, frozen=True, tag="list_sessions_reply", kw_only=True):
    """The answer to `list_sessions`, sorted by id."""

    request_id: str | UnsetType = UNSET
    sessions: list[SessionEntry]
    truncated: bool
    """Whether there are more sessions than the server lists at once."""
    warnings: Warnings | UnsetType = UNSET


class CloseSessionReply(Reply, frozen=True, tag="close_session_reply", kw_only=True):
    """The answer to `close_session`, sent when nothing of the session runs any more."""

    closed: bool
    """Whether it was open."""
    files_deleted: bool
    """Whether it had files that were deleted."""


class SeqRange(Struct, frozen=True):
    """Numbers of events, both included."""

    first: int = field(name="from")
    last: int = field(name="to")


class Resumed(Reply, frozen=True, tag="resumed", kw_only=True):
    """The answer to `resume`. The events that are kept follow, then new ones."""

    first: int = field(name="from")
    """The smallest `seq` that may follow."""
    last: int = field(name="to")
    """The `seq` of the session's latest event."""
    lost: SeqRange | UnsetType = UNSET
    """Events that are no longer in the journal. Of these, only final results that no client received may follow."""
    anew: bool | UnsetType = UNSET
    """True if the session never reached `after`, because it was closed and opened again. Its events are sent from the
    beginning."""
    created: str
    """When the session was opened."""
    unknown_requests: list[str] | UnsetType = UNSET
    """Those of `requestIds` that run or wait no more, and whose answers are not kept. They may have run."""


class WhatRan(Struct, frozen=True, rename="camel", kw_only=True):
    """A cell, command or terminal that was ended when a session was closed."""

    kind: str
    """`cell`, `command` or `terminal`."""
    request_id: str | UnsetType = UNSET
    """That of the request that started it, if it had one."""
    since: str | UnsetType = UNSET
    """When it began."""
    code: str | UnsetType = UNSET
    """The beginning of its code or command, if it is known; for a terminal, its id."""


class SessionStatus(Event, frozen=True, tag="session_status", kw_only=True):
    """A session's new state. Sent to connections that opened or resumed it, or that stream."""

    status: Status
    detail: str
    """A text for people."""
    cause: Cause | UnsetType = UNSET
    closed_at: str | UnsetType = UNSET
    """When the session was closed, if that was before this connection. The following fields belong to it."""
    what_ran: list[WhatRan] | UnsetType = UNSET
    """What was running then and was ended."""
    answers_lost: int | UnsetType = UNSET
    """How many answers no client received before they were lost."""


class EgressDenied(Event, frozen=True, tag="egress_denied", kw_only=True):
    """A program of the session was refused a host. Sent to connections that opened or resumed it, or that stream."""

    host: str
    """Empty if what the program asked for is not a host."""
    port: int
    reason: str
    """Stable, in snake_case."""
    detail: str
    """A text for people."""
