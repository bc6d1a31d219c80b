"""One client's TCP connection: counts what is held for it, and logs malformed HTTP in one line."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError

from kernelbridge.errors import HOLDS_TOO_MUCH, TooMuchBuffered
from kernelbridge.identity.principal import Principal
from kernelbridge.identity.proxied import UNIX
from kernelbridge.server.websocket.buffers import UNKNOWN, Buffers, Holding
from kernelbridge.server.websocket.inbox import Inbox
from kernelbridge.server.websocket.stranger_log import StrangerLog

log = structlog.get_logger(__name__)

SILENT = 75.0
"""Seconds that a connection may take for the head of a request, and between two requests. Proxies keep idle connections
for less (nginx: 60 s), so that they close first."""
_REPEATED = re.compile(r"""[:'"\r\n]""")
OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "access_log": None,
        "keepalive_timeout": SILENT,
        # Uploads are stored as they are; unpacking could multiply their size.
        "auto_decompress": False,
    }
)
"""For aiohttp's protocol."""
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 43\r\n"
    b"Connection: close\r\n\r\nThe server holds too much for its clients.\n"
)


class Ender(Protocol):
    """What a connection is used for: a WebSocket or a transfer."""

    def end(self) -> None:
        """Send the client that the server holds too much for it, and close. Releases at once what it can."""
        ...


class Idle:
    """Connections without a request: of strangers, perhaps, who only connect. With too many, the oldest is dropped."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._oldest_first: dict[TcpConnection, None] = {}

    def add(self, connection: TcpConnection) -> None:
        """Count a connection, and drop the oldest if there are too many."""
        self._oldest_first[connection] = None
        if len(self._oldest_first) > self._most:
            oldest = next(iter(self._oldest_first))
            self.remove(oldest)
            oldest.drop()

    def remove(self, connection: TcpConnection) -> None:
        """Do not count a connection any more: it has a request, or is closed. Idempotent."""
        self._oldest_first.pop(connection, None)


class TcpConnection(web.RequestHandler):
    """aiohttp's protocol, with an account in the server's byte budget."""

    def __init__(
        self, manager: web.Server, buffers: Buffers, strangers: StrangerLog, idle: Idle, **options: Any
    ) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), **options)
        self._buffers = buffers
        self._strangers = strangers
        self._idle = idle
        self._address: str = UNIX
        self.holding: Holding
        """Its account. It has none before `connection_made`, which is never called if the TLS handshake fails."""
        self.ender: Ender | None = None
        self._inbox: Inbox | None = None
        self._handling: web.Request | None = None
        self._handshake: asyncio.Task[Any] | None = None
        self._heads = 0
        """Bytes of requests that are not being handled yet."""
        self._reading_paused_by_flow = False
        self._held_back = False

    @staticmethod
    def of(request: web.BaseRequest) -> TcpConnection:
        """Return the connection of a request."""
        if not isinstance(request.protocol, TcpConnection):
            raise TypeError(request.protocol)
        return request.protocol

    @contextlib.contextmanager
    def shaking_hands(self) -> Iterator[None]:
        """Count the connection among those without a request while the current task does its TLS handshake.

        If it is dropped meanwhile, the task is cancelled.
        """
        self._handshake = asyncio.current_task()
        self._idle.add(self)
        try:
            yield
        finally:
            self._handshake = None
            if self.transport is None:
                self._idle.remove(self)

    @contextlib.contextmanager
    def handling(self, request: web.Request) -> Iterator[None]:
        """Mark a request as being handled: the next bytes are its body or its WebSocket."""
        self._handling = request
        self._idle.remove(self)
        self._count_heads(0)
        try:
            yield
        finally:
            self._handling = None
            if self.transport is not None:
                self._idle.add(self)

    def heard_ago(self) -> float | None:
        """Return the seconds since the client sent something; None if the operating system is to be asked."""
        return None

    def warn(self, event: str, **fields: object) -> None:
        """Log a line about what came through this connection: of strangers few, of known users all."""
        if isinstance(user := self.holding.user, Principal):
            log.warning(event, user_id=user.subject, **fields)
        else:
            self._strangers.warning(event, self._address, **fields)

    # -- aiohttp's protocol --------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where the connection is from; there is no request yet."""
        if isinstance(peer := transport.get_extra_info("peername"), tuple):
            self._address = peer[0]
        self.holding = self._buffers.open(end=self._end, drop=self.drop)
        super().connection_made(transport)
        self._idle.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release what is held for the connection."""
        self._idle.remove(self)
        self.holding.close()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process bytes from the client."""
        if self._inbox is not None and self._inbox.dropping:
            self._inbox.feed_data(data)  # even if aiohttp ignores it, because the server stops
            return
        super().data_received(data)
        if self._handling is None:
            self._count_heads(self._heads + len(data))
        elif self._inbox is None and self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            # The bytes are malformed HTTP. aiohttp answers that later; the reader of the body must not wait for more.
            reason = self._messages[-1][0].message
            if not self._handling.content.is_eof():
                self._handling.content.set_exception(web.RequestPayloadError(reason))

    def pause_reading(self) -> None:
        """Stop reading: aiohttp has enough."""
        self._reading_paused_by_flow = True
        if self._inbox is not None:
            self._inbox.paused()
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's
        """Read again, unless the WebSocket has enough."""
        self._reading_paused_by_flow = False
        if self._inbox is not None:
            self._inbox.resumed()
        super().resume_reading(resume_parser)
        if self._held_back:
            self._pause_transport()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer malformed HTTP and log it in one line; a handler's bug is logged with its traceback."""
        if isinstance(exc, ConnectionError) and (self.transport is None or self.transport.is_closing()):
            return web.Response(status=status)  # nobody reads it: the client is gone, and may do so in a loop
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        # Only what was wrong: what follows repeats bytes of the head, which may be a part of a credential.
        reason = _REPEATED.split(exc.message, maxsplit=1)[0].strip() or type(exc).__name__
        self.warn("malformed_request", reason=reason[:200])
        response = web.Response(status=status, text=f"{reason[:200]}\n")
        response.force_close()
        return response

    # -- a WebSocket ---------------------------------------------------------------

    def expect(self, inbox: Inbox) -> None:
        """Route the bytes of the WebSocket that is about to open through `inbox`."""
        self._inbox = inbox

    def set_parser(self, parser: Any, *more: Any, **others: Any) -> None:
        """Route the client's bytes to the WebSocket from now on."""
        if self._inbox is not None:
            self._inbox.deliver_to(parser)
            parser = self._inbox
        super().set_parser(parser, *more, **others)

    def hold_back(self, back: bool) -> None:  # noqa: FBT001 - the new state
        """Stop reading from the client (True), or read again unless aiohttp has enough (False)."""
        self._held_back = back
        if back:
            self._pause_transport()
        elif not self._reading_paused_by_flow and self.transport is not None:
            self.transport.resume_reading()

    async def room(self) -> None:
        """Wait until the client has read most of what was written, or the connection ends."""
        if self._paused:
            await self._drain_helper()

    def _pause_transport(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()

    # -- the budget ----------------------------------------------------------------

    def _count_heads(self, size: int) -> None:
        if size or self._heads:
            self._heads = size
            self.holding.incoming(size)

    def _end(self) -> None:
        if self.ender is not None:
            self.ender.end()
            return
        self.warn("connection_ended", reason="too much is buffered")
        if self.transport is not None:
            if self._handling is None:
                self.transport.write(_BUSY)
            self.transport.close()

    def drop(self) -> None:
        """Close the connection at once; what was not sent is lost."""
        if self.transport is not None:
            self.transport.abort()
        elif self._handshake is not None:
            self._handshake.cancel()


class UnixConnection(TcpConnection):
    """A connection on a UNIX socket, of which the operating system does not tell when it heard from its peer."""

    def __init__(
        self, manager: web.Server, buffers: Buffers, strangers: StrangerLog, idle: Idle, **options: Any
    ) -> None:
        super().__init__(manager, buffers, strangers, idle, **options)
        self._heard_at = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        """Process bytes from the client."""
        self._heard_at = asyncio.get_running_loop().time()
        super().data_received(data)

    def heard_ago(self) -> float:
        """Return the seconds since the client sent something."""
        return asyncio.get_running_loop().time() - self._heard_at


class Counted:
    """Counts `size` bytes for a transfer while the context is open. Raises `TooMuchBuffered` if it is ended."""

    def __init__(self, request: web.Request, user: Principal, size: int) -> None:
        self._request = request
        self._tcp = TcpConnection.of(request)
        self._user = user
        self._size = size
        self._task: asyncio.Task[Any] | None = None
        self._ended = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._tcp.ender = self
        self._tcp.holding.user = self._user
        self._tcp.holding.incoming(self._size)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._tcp.ender = None
        self._tcp.holding.incoming(0)
        self._tcp.holding.user = UNKNOWN  # the next request of the connection may be another's
        if self._ended and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise TooMuchBuffered("The transfer was ended", HOLDS_TOO_MUCH) from None

    def end(self) -> None:
        """End the transfer, with an error if the answer has not begun."""
        log.warning("transfer_ended", reason="too much is buffered", user_id=self._user.subject)
        transport = self._request.transport
        if self._request.writer.output_size:
            if transport is not None:
                transport.abort()
        elif self._task is not None:
            self._ended = True
            self._task.cancel()
        self._tcp.holding.incoming(0)
