"""A WebSocket that tells its client why the connection ends, before it ends."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import struct
import time
from collections.abc import Callable
from typing import Literal

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_websocket import WSMessageNoDecodeText

from kernelbridge.aio.turns import TURN
from kernelbridge.errors import HOLDS_TOO_MUCH, BadRequest, KernelBridgeError, LimitExceeded, TooMuchBuffered
from kernelbridge.identity.credentials import MARKER
from kernelbridge.protocol import dump
from kernelbridge.server.websocket.frames import Violation
from kernelbridge.server.websocket.handlers import answers
from kernelbridge.server.websocket.inbox import Inbox
from kernelbridge.server.websocket.tcp import TcpConnection

CLOSE_TIMEOUT = 5.0
"""Seconds that a client has to read why its connection ends."""
_FINAL = 0x80
_LENGTH_FOLLOWS = 127
"""Of the header of a frame (RFC 6455): it is the last of its message; its length follows in eight bytes."""
LOGIN_END = 1.5
"""Seconds that a client has for that when its login ends: with the time until that is noticed, at most five."""
_CONTROLS_BEFORE_LOGIN = 16
"""Pings and pongs that a client may send before it has logged in."""
_DECODED_AT_ONCE = 64 << 10
"""Bytes of a message that are decoded at a time to check that it is UTF-8."""
_WRITTEN_AT_ONCE = 1 << 20
"""Bytes of a frame that are written at a time. To a client that reads as fast as it is written, one call of the
operating system writes all that it gets: the event loop would stand still for 25 ms and more for 50 MB."""


class Socket(web.WebSocketResponse[Literal[False]]):
    """One client's WebSocket. It receives text messages as bytes."""

    def __init__(
        self, request: web.Request, *, max_message: int, message_timeout: float, before_login: int | None = None
    ) -> None:
        """Until `logged_in`, messages have at most `before_login` bytes, if that is given."""
        # The inbox checks sizes, exactly. It also counts pings, so `receive` answers them and not aiohttp.
        super().__init__(
            max_msg_size=max_message + 1, compress=False, decode_text=False, autoping=False, protocols=(MARKER,)
        )
        self._request = request
        self._largest = max_message
        self._max_message = max_message if before_login is None else before_login
        self._message_timeout = message_timeout
        self._tcp = TcpConnection.of(request)
        self.closing = False
        """Whether this side has sent its close, or is about to."""
        self.pace: Callable[[int], float] = lambda _size: 0.0
        """Counts a control frame of `size` bytes; returns the seconds to wait before more is read."""
        self._controls_left = None if before_login is None else _CONTROLS_BEFORE_LOGIN
        self._cutting_off: asyncio.Task[None] | None = None
        self._unwritten: memoryview | None = None
        """The rest of the frame that is being written in parts. Nothing else may be written before it."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when the connection is cut off: from then on nothing else is sent."""
        self.holding = self._tcp.holding
        self.inbox = Inbox(
            max_message=self._max_message,
            timeout=message_timeout,
            holding=self.holding,
            hold_back=self._tcp.hold_back,
            overdue=self._overdue,
        )
        self._tcp.expect(self.inbox)
        self._tcp.ender = self

    async def receive(self, timeout: float | None = None) -> WSMessageNoDecodeText:  # noqa: ASYNC109 - aiohttp's
        """Return the next message. Pings are answered meanwhile, but not after this side's close."""
        end = time.monotonic() + TURN
        while (message := await super().receive(timeout)).type in {WSMsgType.PING, WSMsgType.PONG}:
            self.inbox.control_handled(len(message.data))
            if self._controls_left is not None and not self.closing:
                self._controls_left -= 1
                if self._controls_left < 0:
                    await self._refuse(Violation(WSCloseCode.POLICY_VIOLATION, "too many pings before the login"))
                    return message
            if message.type is WSMsgType.PING and not self.closing:
                with contextlib.suppress(ConnectionError):  # the next call tells it
                    await self.pong(message.data)
            if (wait := self.pace(len(message.data))) > 0 or time.monotonic() > end:
                await asyncio.sleep(wait)  # thousands may wait already: others have their turn
                end = time.monotonic() + TURN
        return message

    async def send_frame(self, message: bytes, opcode: WSMsgType, compress: int | None = None) -> None:
        """Send a frame. Raises `ConnectionError`, also if the connection ends while the frame waits for room.

        When cancelled, the frame is sent whole nevertheless.
        """
        self._write_rest()
        if len(message) > _WRITTEN_AT_ONCE:
            await self._send_in_parts(message, opcode)
        else:
            await super().send_frame(message, opcode, compress)
        # aiohttp ends the wait for room without an error when this server has dropped the connection.
        if self._request.transport is None:
            raise ConnectionResetError("the connection ended before the frame was taken")

    async def ping(self, message: bytes = b"") -> None:
        """Send a ping. See `send_frame`."""
        await self.send_frame(message, WSMsgType.PING)

    async def pong(self, message: bytes = b"") -> None:
        """Answer a ping. See `send_frame`."""
        await self.send_frame(message, WSMsgType.PONG)

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Close; see `aiohttp.web.WebSocketResponse.close`."""
        if self.closing:
            return False  # the connection ends by itself when its reader returns
        if (violation := self.inbox.violation) is not None and not self.closed:
            await self._refuse(violation)
            return True
        self._write_rest()
        return await super().close(code=code, message=message, drain=drain)

    async def close_gracefully(self, code: int, reason: bytes, *, seconds: float) -> None:
        """Send a close, and wait at most `seconds` for the client's. Messages that are unread by then are dropped.

        Closing at once, with unread data, would reset the connection, and the client might not see the close.
        """
        self.closing = True
        self.inbox.drop()
        await self._say(None, code, reason, seconds)
        if self._request.transport is not None:
            self._request.transport.close()

    async def refuse_invalid_text(self) -> None:
        """End the connection of a client that sent a text message that is not UTF-8."""
        await self._refuse(Violation(WSCloseCode.INVALID_TEXT, "a text message must be UTF-8"))

    def end(self) -> None:
        """End the connection because the server holds too much for it."""
        error = TooMuchBuffered("Too much is held for this client", f"{HOLDS_TOO_MUCH}. The connection is closed")
        self._cut_off(error, WSCloseCode.TRY_AGAIN_LATER, b"too much is buffered")

    def heard_ago(self) -> float | None:
        """Return the seconds since the client sent something; None if the operating system is to be asked."""
        return self._tcp.heard_ago()

    def logged_in(self) -> None:
        """Accept messages of any allowed size, and any number of pings, from now on."""
        self._controls_left = None
        self._max_message = self._largest
        self.inbox.allow(self._largest)

    def end_login(self, error: KernelBridgeError) -> None:
        """End the connection of a client that is not logged in, or not any more."""
        self._cut_off(error, WSCloseCode.POLICY_VIOLATION, b"not logged in", seconds=LOGIN_END)

    async def cut_off_done(self) -> None:
        """Wait until a client that was cut off has been told why, or does not read it in time."""
        if self._cutting_off is not None:
            await asyncio.wait([self._cutting_off])

    async def _send_in_parts(self, message: bytes, opcode: WSMsgType) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing() or self.closed:
            raise ConnectionResetError("the connection has ended")
        transport.write(struct.pack("!BBQ", _FINAL | opcode, _LENGTH_FOLLOWS, len(message)))
        self._unwritten = memoryview(message)
        try:
            while (rest := self._unwritten) is not None and not transport.is_closing():
                self._unwritten = rest[_WRITTEN_AT_ONCE:] or None
                transport.write(rest[:_WRITTEN_AT_ONCE])
                await self._tcp.room()
        finally:
            self._write_rest()

    def _write_rest(self) -> None:
        """Pass the rest of the frame that is being written to the connection at once."""
        rest, self._unwritten = self._unwritten, None
        if rest is not None and (transport := self._request.transport) is not None:
            transport.write(rest)

    def _overdue(self) -> None:
        error = BadRequest(
            "The message was not finished in time",
            f"expected all of it within {self._message_timeout:g} s (--message-timeout); large files may be sent by"
            " HTTP, which takes as long as it takes. The connection is closed",
            code="message_timeout",
        )
        self._cut_off(error, WSCloseCode.POLICY_VIOLATION, b"the message was not finished in time")

    def _cut_off(self, error: KernelBridgeError, code: int, reason: bytes, seconds: float = CLOSE_TIMEOUT) -> None:
        """Drop what the client sent and what it has not read, send it the error, and close."""
        if self.closing:
            return
        self.closing = True
        self.inbox.drop()
        self.on_end()
        self._tcp.warn("connection_ended", code=int(code), reason=reason.decode())
        self._cutting_off = asyncio.get_running_loop().create_task(self._say_and_abort(error, code, reason, seconds))

    async def _say_and_abort(self, error: KernelBridgeError, code: int, reason: bytes, seconds: float) -> None:
        await self._say(error, code, reason, seconds)
        transport = self._request.transport
        if transport is not None:
            transport.abort()

    async def _refuse(self, violation: Violation) -> None:
        """Close the connection; the reason names the broken rule. What the client still sends is discarded.

        Closing at once, with unread data, would reset the connection, and the client would not see the reason.
        """
        self.closing = True
        self.inbox.drop()
        self._tcp.warn("connection_ended", code=violation.code, reason=violation.reason)
        if violation.code == WSCloseCode.MESSAGE_TOO_BIG:
            error = BadRequest(
                "The frame is too large",
                f"expected at most {self._max_message} bytes; the connection is closed",
                code="frame_too_large",
            )
            await self._say(error, violation.code, b"", CLOSE_TIMEOUT)
        else:
            await self._say(None, violation.code, violation.reason.encode(), CLOSE_TIMEOUT)

    async def _say(self, error: KernelBridgeError | None, code: int, reason: bytes, seconds: float) -> None:
        """Send an error and a close, and wait at most `seconds` until the client has closed or is gone."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(seconds):
                if error is not None:
                    await self.send_frame(dump(answers.error_message(error)), WSMsgType.TEXT)
                await self.send_frame(struct.pack("!H", code) + reason, WSMsgType.CLOSE)
                await self.inbox.ended.wait()


async def refuse_connection(ws: Socket, limit: int) -> None:
    """Refuse a connection of a user who has `limit` of them already, and close it with 1013."""
    error = LimitExceeded(
        "Too many connections are open for this user", f"the limit is {limit}; close one, or use one for all sessions"
    )
    with contextlib.suppress(ConnectionError):
        await ws.send_frame(dump(answers.error_message(error)), WSMsgType.TEXT)
        await ws.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too many connections")


def is_text(message: bytes) -> bool:
    """Return whether a message is UTF-8. It is decoded in parts: as one text it may take four times its size."""
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
