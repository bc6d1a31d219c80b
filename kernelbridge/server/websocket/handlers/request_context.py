"""What handlers know of a request: its client, its workspace, and where its answer and events go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, TypeVar, cast

import structlog
from msgspec import UNSET, UnsetType, structs

from kernelbridge.errors import KernelBridgeError
from kernelbridge.identity.principal import Identity, Principal
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

Outcome = TypeVar("Outcome")
M = TypeVar("M", bound="ServerMessage")

PASSING = frozenset(
    {
        *(FileContent, FileList, CompleteReply, InspectReply, IsCompleteReply),
        *(FileChanged, TerminalOpened, TerminalData, TerminalClosed),
    }
)
"""Messages for the client that asked only, which are not in the journal: it can ask again, or they belong to its own
watch or terminal, which has a replay of its own."""


class Client(Listener, Protocol):
    """One connection, as handlers see it."""

    principal: Principal
    registry: Registry

    def workspace(self, session_id: str) -> Workspace:
        """Return the session's workspace, opened if need be, and mark it as used here. Raises `LimitExceeded`."""
        ...

    def renew_login(self, token: str) -> Identity:
        """Stay logged in with another token of the same principal. Raises `Unauthorized` or `BadRequest`."""
        ...

    def refuse_login(self, error: KernelBridgeError) -> None:
        """Send an error and end the connection with 1008. Nothing else is sent any more."""
        ...

    def send(self, message: ServerMessage) -> None:
        """Queue an answer. It is never left out."""
        ...

    def refused(self, error: KernelBridgeError, what: str, session_id: str | None, request_id: str | None) -> None:
        """Count and audit an error that answers a request; `what` is the request's type."""
        ...


class Ids(TypedDict):
    """The ids that an answer or event has of its request."""

    session_id: str
    request_id: str | UnsetType


@dataclass(slots=True)
class RequestContext:
    """One request, and the way back to the client that sent it."""

    client: Client
    workspace: Workspace
    session_id: str
    request_id: str | UnsetType
    warnings: list[str] = field(default_factory=list)
    """About the request. Its final answer carries them; then this is emptied."""

    @classmethod
    def of(cls, client: Client, request: SessionRequest, warnings: list[str]) -> RequestContext:
        """Attach the client to the request's session. Raises `LimitExceeded`."""
        workspace = client.workspace(request.session_id)
        return cls(client, workspace, request.session_id, echoed(request.request_id), warnings)

    @property
    def ids(self) -> Ids:
        """The ids for an answer or event."""
        return {"session_id": self.session_id, "request_id": self.request_id}

    def seq(self) -> int:
        """Return the number for the session's next event."""
        return self.workspace.feed.next_seq()

    def answer(self, message: ServerMessage) -> None:
        """Send an answer, also to clients that follow the session. It is kept if no client is connected."""
        self.workspace.pausing.touch()
        if self.warnings and is_final(message):
            message = with_warnings(message, self.warnings)
            if not isinstance(message, Interrupted):  # the cell's own result, which follows, has them too
                self.warnings = []
        if type(message) in PASSING:
            self.client.put_frame(self._passing(message))
            return
        frame = encode(message)
        seq = getattr(message, "seq", UNSET)
        request_id = None if self.request_id is UNSET else self.request_id
        self.workspace.feed.answer(self.client, frame, None if seq is UNSET else seq, request_id)

    def fail(self, error: KernelBridgeError) -> None:
        """Answer with an `error`."""
        self.answer(answers.error_message(error, **self.ids))

    def reply(self, outcome: Outcome | KernelBridgeError, answer: Callable[[Outcome], ServerMessage]) -> None:
        """Send what `answer` makes of the outcome, or the outcome as an `error` if it is one."""
        if isinstance(outcome, KernelBridgeError):
            self.fail(outcome)
        else:
            self.answer(answer(outcome))

    def event(self, message: Event) -> bool:
        """Send an event. Returns False if it was left out because the client reads too slowly."""
        if type(message) in PASSING:
            return self.client.offer_frame(self._passing(message))
        feed = self.workspace.feed
        if message.seq <= feed.last:  # another event was numbered meanwhile
            message = structs.replace(message, seq=feed.next_seq())
        frame = encode(message)
        if getattr(message, "left_out", UNSET) is UNSET:
            return feed.event(self.client, frame, message.seq)
        # The journal and the clients that follow have what this client missed.
        return feed.event(self.client, encode(structs.replace(message, left_out=UNSET)), message.seq, frame)

    def _passing(self, message: Message) -> bytes:
        """Encode a message for this client only, with a `seq` that it can resume from."""
        seq, sent = getattr(message, "seq", UNSET), self.workspace.feed.position(self.client)
        if seq is not UNSET and seq > sent:  # it overtakes events that are still being replayed to the client
            message = structs.replace(message, seq=sent)
        return encode(message)


Handler = Callable[[RequestContext, Any], Awaitable[None]]
"""Handles one type of request; `Any` is that type, the key in the table of handlers."""

PrincipalHandler = Callable[[Client, Any, list[str]], Awaitable[None]]
"""The same for requests about the principal's sessions, which do not open one; the last argument is its warnings."""


def is_final(message: ServerMessage) -> bool:
    """Return whether a message is the final answer to a request, which carries its warnings."""
    return hasattr(message, "warnings") and not (isinstance(message, Interrupted) and not message.done)


def with_warnings(message: M, warnings: list[str]) -> M:
    """Return an answer with the warnings of its request, if there are any."""
    return structs.replace(message, warnings=warnings) if warnings else message


def echoed(request_id: str | None) -> str | UnsetType:
    """Return the `requestId` to echo, or `UNSET` for a request without one."""
    return UNSET if request_id is None else request_id


def encode(message: Message) -> bytes:
    """Encode a message; one that cannot be encoded becomes an `error`, so that the request is answered."""
    try:
        return dump(cast("ServerMessage", message))
    except Exception:  # results contain what the kernel sent, which may be anything
        log.exception("answer_not_written", type=type(message).__name__)
        return dump(answers.internal_error(getattr(message, "session_id", None), getattr(message, "request_id", UNSET)))
