"""A WebSocket that says why it ends before it does, so that the client can read it."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import struct
from collections.abc import Callable
from typing import Literal

import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_websocket import WSMessageNoDecodeText
from msgspec import UNSET

from kernelbridge.errors import LimitExceeded
from kernelbridge.protocol import dump
from kernelbridge.protocol.messages import ErrorMessage
from kernelbridge.server.websocket.frames import Violation
from kernelbridge.server.websocket.handlers import answers
from kernelbridge.server.websocket.inbox import Inbox
from kernelbridge.server.websocket.tcp import TcpConnection

log = structlog.get_logger(__name__)

LAST_WORDS = 5.0
"""Seconds that a client has to read why its connection ends."""
_DECODED_AT_ONCE = 64 << 10
"""Bytes of a message that are decoded at a time, to see that it is text."""


class Socket(web.WebSocketResponse[Literal[False]]):
    """One client's WebSocket; text messages are received as bytes."""

    def __init__(self, request: web.Request, *, max_message: int, message_timeout: float) -> None:
        # The inbox judges sizes, and knows the exact one. It also has to know of each ping when it has been handled.
        super().__init__(max_msg_size=max_message + 1, compress=False, decode_text=False, autoping=False)
        self._request = request
        self._max_message = max_message
        self._message_timeout = message_timeout
        self._tcp = TcpConnection.of(request)
        self.left = False
        """Whether this side has said goodbye."""
        self._farewell: asyncio.Task[None] | None = None
        self.on_end: Callable[[], None] = lambda: None
        """Called when the connection is cut off: nothing more is sent then."""
        self.holding = self._tcp.holding
        self.inbox = Inbox(
            max_message=max_message,
            timeout=message_timeout,
            holding=self.holding,
            hold_back=self._tcp.hold_back,
            overdue=self._overdue,
        )
        self._tcp.expect(self.inbox)
        self._tcp.ender = self

    async def receive(self, timeout: float | None = None) -> WSMessageNoDecodeText:  # noqa: ASYNC109 - aiohttp's
        """Give the next message; pings are answered meanwhile, but not after the goodbye."""
        while (message := await super().receive(timeout)).type in {WSMsgType.PING, WSMsgType.PONG}:
            if message.type is WSMsgType.PING and not self.left:
                await self.pong(message.data)
            self.inbox.control_handled(len(message.data))
        return message

    async def send_frame(self, message: bytes, opcode: WSMsgType, compress: int | None = None) -> None:
        """Send a frame. Raises `ConnectionError` also if the connection ends before the client has room for it."""
        await super().send_frame(message, opcode, compress)
        # Whoever waits for room is woken without an error when this server has dropped the connection.
        if self._request.transport is None:
            raise ConnectionResetError("the connection ended before the frame was taken")

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Close; see `aiohttp.web.WebSocketResponse.close`."""
        if self.left:
            return False  # the connection ends when nobody reads from it any more
        if (violation := self.inbox.violation) is not None and not self.closed:
            await self._refuse(violation)
            return True
        return await super().close(code=code, message=message, drain=drain)

    async def leave(self, code: int, reason: bytes, *, seconds: float) -> None:
        """Say that this is the end, and give the client so long to close. What it sent and nobody has read is dropped.

        To close at once, with something unread that it sent, would reset the connection: it might see nothing of this.
        """
        self.left = True
        self.inbox.drop()
        await self._say(None, code, reason, seconds)
        if self._request.transport is not None:
            self._request.transport.close()

    async def no_text(self) -> None:
        """End the connection of a client that sent a text message which is none."""
        await self._refuse(Violation(WSCloseCode.INVALID_TEXT, "a text message must be UTF-8"))

    def end(self) -> None:
        """End the connection because the server holds too much for it."""
        self._cut_off(answers.too_much_buffered(), WSCloseCode.TRY_AGAIN_LATER, b"too much is buffered")

    async def said(self) -> None:
        """Wait until whoever was cut off has been told, or does not listen."""
        if self._farewell is not None:
            await asyncio.wait([self._farewell])

    def _overdue(self) -> None:
        error = answers.message_timeout(self._message_timeout)
        self._cut_off(error, WSCloseCode.POLICY_VIOLATION, b"the message was not finished in time")

    def _cut_off(self, error: ErrorMessage, code: int, reason: bytes) -> None:
        """Forget what it sent and what it has not read, tell it, and close."""
        if self.left:
            return
        self.left = True
        self.inbox.drop()
        self.on_end()
        log.warning("connection_ended", code=int(code), reason=reason.decode(), user_id=self.holding.user)
        self._farewell = asyncio.get_running_loop().create_task(self._tell_and_close(error, code, reason))

    async def _tell_and_close(self, error: ErrorMessage, code: int, reason: bytes) -> None:
        await self._say(error, code, reason, LAST_WORDS)
        transport = self._request.transport
        if transport is not None:
            transport.abort()

    async def _refuse(self, violation: Violation) -> None:
        """Say which rule the client broke. What it still sends is discarded meanwhile.

        Closing at once, with its data unread, would reset the connection, and the client would see neither.
        """
        self.left = True
        self.inbox.drop()
        log.warning("connection_ended", code=violation.code, reason=violation.reason)
        if violation.code == WSCloseCode.MESSAGE_TOO_BIG:
            await self._say(answers.frame_too_large(self._max_message), violation.code, b"", LAST_WORDS)
        else:
            await self._say(None, violation.code, violation.reason.encode(), LAST_WORDS)

    async def _say(self, error: ErrorMessage | None, code: int, reason: bytes, seconds: float) -> None:
        """Send an error and a close, and wait until the client has gone or closed, but not longer than that."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(seconds):
                if error is not None:
                    await self.send_frame(dump(error), WSMsgType.TEXT)
                await self.send_frame(struct.pack("!H", code) + reason, WSMsgType.CLOSE)
                await self.inbox.over.wait()


async def turn_away(ws: Socket, limit: int) -> None:
    """Say that this user has `limit` connections already, and close with 1013."""
    error = LimitExceeded(
        "Too many connections are open for this user", f"the limit is {limit}; close one, or use one for all sessions"
    )
    with contextlib.suppress(ConnectionError):
        await ws.send_frame(dump(answers.error_message(error, None, UNSET)), WSMsgType.TEXT)
        await ws.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too many connections")


def is_text(message: bytes) -> bool:
    """Whether it is UTF-8; without the whole of it in memory as text, which may be four times as large."""
    if message.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(message), _DECODED_AT_ONCE):
            decoder.decode(message[at : at + _DECODED_AT_ONCE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
