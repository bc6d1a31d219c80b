"""What the handlers of requests see of a connection, and the way back for what one request causes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import structlog
from msgspec import UNSET, UnsetType, structs

from kernelbridge.protocol import ServerMessage, SessionRequest, dump
from kernelbridge.protocol.base import Event, Message
from kernelbridge.protocol.cells import CompleteReply, InspectReply, Interrupted, IsCompleteReply
from kernelbridge.protocol.files import FileChanged, FileContent, FileList
from kernelbridge.protocol.terminals import TerminalClosed, TerminalData, TerminalOpened
from kernelbridge.server.websocket.handlers import answers
from kernelbridge.workspace.journal.feed import Listener
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.workspace import Workspace

log = structlog.get_logger(__name__)

PASSING = frozenset(
    {
        *(FileContent, FileList, CompleteReply, InspectReply, IsCompleteReply),
        *(FileChanged, TerminalOpened, TerminalData, TerminalClosed),
    }
)
"""What goes only to whoever asked and is not in the journal: it can be asked for again, or belongs to one connection's
own watch or terminal, which has its own replay."""


class Client(Listener, Protocol):
    """One connection."""

    user_id: str | None
    registry: Registry

    def workspace(self, session_id: str) -> Workspace:
        """Find or make the session's workspace, and note that this connection uses it. Raises `LimitExceeded`."""
        ...

    def send(self, message: ServerMessage) -> None:
        """Queue an answer, which must reach the client."""
        ...

    @property
    def backlog(self) -> int:
        """Bytes that the client has not read yet."""
        ...

    async def room(self, level: int = ...) -> None:
        """Wait until at most `level` bytes are not read yet, or the client is gone; by default, see `Listener`."""
        ...

    def on_close(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called when the connection is gone; the result takes that back."""
        ...


@dataclass(slots=True)
class RequestContext:
    """Whoever sent a request: where its answer and its events go."""

    client: Client
    workspace: Workspace
    session_id: str
    request_id: str | UnsetType
    warnings: list[str] = field(default_factory=list)
    """Of the request; told by its final answer, and emptied then."""

    @classmethod
    def of(cls, client: Client, request: SessionRequest, warnings: list[str]) -> RequestContext:
        """Attach the client to the request's session. Raises `LimitExceeded`."""
        workspace = client.workspace(request.session_id)
        return cls(client, workspace, request.session_id, given(request.request_id), warnings)

    def seq(self) -> int:
        """Give the number of the session's next event."""
        return self.workspace.feed.next_seq()

    def answer(self, message: ServerMessage) -> None:
        """Send the answer. Whoever follows the session gets it too; if nobody is there, it is kept."""
        self.workspace.pausing.touch()
        if self.warnings and is_final(message):
            message = warned(message, self.warnings)
            if not isinstance(message, Interrupted):  # of a cell it is an event, and the result follows
                self.warnings = []
        if type(message) in PASSING:
            self.client.put_frame(self._passing(message))
            return
        frame = encode(message)
        seq = getattr(message, "seq", UNSET)
        self.workspace.feed.answer(self.client, frame, None if seq is UNSET else seq)

    def event(self, message: Event) -> bool:
        """Send an event; False if it was left out, because the client reads too slowly."""
        if type(message) in PASSING:
            return self.client.offer_frame(self._passing(message))
        feed = self.workspace.feed
        if message.seq <= feed.last:  # numbered before something else was told
            message = structs.replace(message, seq=feed.next_seq())
        told = encode(message)
        if getattr(message, "left_out", UNSET) is UNSET:
            return feed.event(self.client, told, message.seq)
        # The journal and those who follow have what this client missed.
        return feed.event(self.client, encode(structs.replace(message, left_out=UNSET)), message.seq, told)

    def _passing(self, message: Message) -> bytes:
        """Write a frame for this connection alone, with a number that it may come back with."""
        seq, told = getattr(message, "seq", UNSET), self.workspace.feed.told(self.client)
        if seq is not UNSET and seq > told:  # it overtakes what the connection is still being given
            message = structs.replace(message, seq=told)
        return encode(message)


Handler = Callable[[RequestContext, Any], Awaitable[None]]
"""Does what a request asks; `Any` is the request's own type, which the table of handlers is keyed by."""

PrincipalHandler = Callable[[Client, Any, list[str]], Awaitable[None]]
"""Likewise for a request about the principal's sessions, which opens none by itself; the last are its warnings."""


def is_final(message: ServerMessage) -> bool:
    """Whether a message ends the answer to a request, and may say what was strange in it."""
    return hasattr(message, "warnings") and not (isinstance(message, Interrupted) and not message.done)


T = TypeVar("T", bound="ServerMessage")


def warned(message: T, warnings: list[str]) -> T:
    """Give an answer with the warnings of its request, if there are any."""
    return structs.replace(message, warnings=warnings) if warnings else message


def given(request_id: str | None) -> str | UnsetType:
    """Give the requestId to echo: that of the request, if it had one."""
    return UNSET if request_id is None else request_id


def encode(message: Message) -> bytes:
    """Write a frame; an answer that cannot be written becomes an error, for whoever asked must hear of it."""
    try:
        return dump(cast("ServerMessage", message))
    except Exception:  # results hold whatever a kernel sent
        log.exception("answer_not_written", type=type(message).__name__)
        return dump(answers.internal_error(getattr(message, "session_id", None), getattr(message, "request_id", UNSET)))
