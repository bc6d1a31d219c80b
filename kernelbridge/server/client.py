"""What the handlers of requests see of a connection, and the way back for what one request causes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import UNSET, UnsetType

from kernelbridge.protocol import ServerMessage, SessionRequest
from kernelbridge.workspace.workspace import Workspace


class Client(Protocol):
    """One connection."""

    id: str
    user_id: str | None
    streams: bool
    """Whether requests that do not say are streamed."""

    def workspace(self, session_id: str) -> Workspace:
        """Find or make the session's workspace, and note that this connection uses it. Raises `LimitExceeded`."""
        ...

    def send(self, message: ServerMessage) -> None:
        """Queue an answer, which must reach the client."""
        ...

    def offer(self, message: ServerMessage) -> bool:
        """Queue an event unless the client reads too slowly; say whether it was."""
        ...

    def on_close(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called when the connection is gone; the result takes that back."""
        ...


@dataclass(slots=True)
class Asker:
    """Whoever sent a request: where its answer and its events go."""

    client: Client
    workspace: Workspace
    session_id: str
    request_id: str | UnsetType

    @classmethod
    def of(cls, client: Client, request: SessionRequest) -> Asker:
        """Attach the client to the request's session. Raises `LimitExceeded`."""
        return cls(
            client,
            client.workspace(request.session_id),
            request.session_id,
            UNSET if request.request_id is None else request.request_id,
        )

    def seq(self) -> int:
        """Give the number of the session's next event."""
        return self.workspace.next_seq()

    def answer(self, message: ServerMessage) -> None:
        """Send the answer."""
        self.client.send(message)

    def event(self, message: ServerMessage) -> bool:
        """Send an event; see `Client.offer`."""
        return self.client.offer(message)


Handler = Callable[[Asker, Any], Awaitable[None]]
"""Does what a request asks; `Any` is the request's own type, which the table of handlers is keyed by."""
