"""The answers of the administrator's HTTP interface: what the server sends, and `kernelbridge ps` and `logs` read."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from kernelbridge.protocol.sessions import WhatRan


class SessionRow(Struct, frozen=True, rename="camel", kw_only=True):
    """One open session of any user."""

    id: str
    """Names it in the other requests, and is `workspace` in the server's log."""
    user: str | None
    session: str
    """The `sessionId`."""
    state: str
    """That of its sandbox: `absent`, `starting`, `active`, `pausing`, `paused`, `resuming` or `closing`."""
    kernel_state: str
    created: str
    """When it was opened."""
    connections: int
    running: list[WhatRan]
    """What runs: a cell, a command, and open terminals."""
    queued_cells: int
    queued_commands: int
    memory: int | None = None
    """Bytes that its sandbox uses; null if it has none, or if that is not known now."""
    disk: int | None = None
    """Bytes of its files; null if they are not counted."""


class SessionTable(Struct, frozen=True):
    """`GET /api/sessions`."""

    sessions: list[SessionRow]


class JournalEvent(Struct, frozen=True, rename="camel", kw_only=True):
    """One frame that a session has sent."""

    seq: int
    type: str
    size: int
    """Bytes of the frame."""
    frame: msgspec.Raw
    """The frame, a JSON object; `null` if it is too large to be sent again here."""


class JournalEvents(Struct, frozen=True):
    """`GET /api/workspaces/{id}/events`: the latest frames, the oldest first."""

    events: list[JournalEvent]
