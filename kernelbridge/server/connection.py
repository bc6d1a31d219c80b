"""One WebSocket: its reader, and the answers to what it reads."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from collections.abc import Callable

import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import UNSET

from kernelbridge.errors import BadRequest, KernelBridgeError, LimitExceeded
from kernelbridge.protocol import PrincipalRequest, ServerMessage, SessionRequest, dump
from kernelbridge.protocol.cells import InputReply
from kernelbridge.protocol.codec import identify, read
from kernelbridge.protocol.messages import Connected, ErrorMessage, Ping, Pong
from kernelbridge.server import answers
from kernelbridge.server.client import Asker, encode, given, warned
from kernelbridge.server.outbox import HIGH_WATER, Outbox, Unsent
from kernelbridge.server.requests import HANDLERS, PRINCIPAL_HANDLERS, WITHOUT_SANDBOX
from kernelbridge.server.requests.interpreter import remind
from kernelbridge.workspace.layout import SessionKey
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.workspace import Workspace

log = structlog.get_logger(__name__)

LAST_WORDS = 5.0
"""Seconds that a client has to read why its frame was refused."""


class Socket(web.WebSocketResponse):
    """A WebSocket that explains an oversized frame before it closes with 1009, so that the client can read both."""

    def __init__(self, request: web.Request, *, max_message: int) -> None:
        # aiohttp refuses what has as many bytes as this.
        super().__init__(max_msg_size=max_message + 1, compress=False)
        self._request = request
        self._max_message = max_message
        self._left = False

    async def send_frame(self, message: bytes, opcode: WSMsgType, compress: int | None = None) -> None:
        """Send a frame. Raises `ConnectionError` also if the connection ends before the client has room for it."""
        await super().send_frame(message, opcode, compress)
        # Whoever waits for room is woken without an error when this server has dropped the connection.
        if self._request.transport is None:
            raise ConnectionResetError("the connection ended before the frame was taken")

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Close; see `aiohttp.web.WebSocketResponse.close`."""
        if self._left:
            return False  # the connection ends when nobody reads from it any more
        if code == WSCloseCode.MESSAGE_TOO_BIG and not self.closed:
            await self._refuse_frame()
        return await super().close(code=code, message=message, drain=drain)

    async def leave(self, code: int, reason: bytes, *, seconds: float) -> None:
        """Say that this is the end, and give the client so long to close; whoever reads from it goes on reading.

        To close at once, with something unread that it sent, would reset the connection: it might see nothing of this.
        """
        self._left = True
        with contextlib.suppress(ConnectionError):
            await self.send_frame(struct.pack("!H", code) + reason, WSMsgType.CLOSE)
            await self._gone(seconds)
        if self._request.transport is not None:
            await super().close(code=code, message=reason)

    async def _refuse_frame(self) -> None:
        """Say why, then let the client close: what it still sends is discarded meanwhile.

        Closing at once, with its data unread, would reset the connection, and the client would see neither.
        """
        with contextlib.suppress(ConnectionError):
            await self.send_frame(dump(answers.frame_too_large(self._max_message)), WSMsgType.TEXT)
            await self.send_frame(struct.pack("!H", WSCloseCode.MESSAGE_TOO_BIG), WSMsgType.CLOSE)
            await self._gone(LAST_WORDS)

    async def _gone(self, seconds: float) -> None:
        """Wait until the connection is gone, but not longer. aiohttp tells nobody, so this is looked at."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._request.transport is not None and loop.time() < deadline:
            await asyncio.wait({loop.create_future()}, timeout=seconds / 100)


async def turn_away(ws: Socket, limit: int) -> None:
    """Say that this user has `limit` connections already, and close with 1013."""
    error = LimitExceeded(
        "Too many connections are open for this user", f"the limit is {limit}; close one, or use one for all sessions"
    )
    with contextlib.suppress(ConnectionError):
        await ws.send_frame(dump(answers.error_message(error, None, UNSET)), WSMsgType.TEXT)
        await ws.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too many connections")


class Connection:
    """Serves one client until it leaves."""

    def __init__(
        self,
        ws: Socket,
        *,
        user_id: str | None,
        streams: bool,
        strict: bool,
        registry: Registry,
        warning: str | None,
    ) -> None:
        """`strict`: requests with fields that the protocol does not have are refused."""
        self.id = secrets.token_hex(8)
        self.user_id = user_id
        self.streams = streams
        self.registry = registry
        self._ws = ws
        self._strict = strict
        self._warning = warning
        self._outbox = Outbox(ws)
        self._on_close: dict[object, Callable[[], None]] = {}
        self._reading = asyncio.Event()
        self._reading.set()
        self._leaving = False
        self._log = log.bind(connection=self.id)

    async def run(self) -> None:
        """Confirm the connection, then read and answer until it ends."""
        self._log.info("connected", user_id=self.user_id)
        self.send(
            Connected(
                connection_id=self.id,
                user_id=self.user_id,
                timestamp=answers.timestamp(),
                warning=self._warning or UNSET,
            )
        )
        writer = asyncio.get_running_loop().create_task(self._write())
        try:
            await self._read()
        finally:
            self._outbox.close()
            for call in list(self._on_close.values()):
                call()
            self.registry.detach(self.id)
            # It may wait for a client that reads no more.
            writer.cancel()
            await asyncio.wait([writer])
            self._log.info("disconnected", code=int(self._ws.close_code or 0))

    async def hang_up(self, seconds: float) -> None:
        """Answer what is being handled, send what is waiting, then close with 1001; the client has `seconds` for that.

        What the client sent and this server has not read is not carried out.
        """
        await self._reading.wait()
        await self._outbox.sent()
        self._leaving = True
        await self._ws.leave(WSCloseCode.GOING_AWAY, b"the server stops", seconds=seconds)

    async def _write(self) -> None:
        await self._outbox.run()
        if self._outbox.overflowed:
            self._log.warning("client_too_slow")
            await self._ws.close(code=WSCloseCode.POLICY_VIOLATION, message=b"answers were not read in time")

    async def _read(self) -> None:
        async for message in self._ws:
            if message.type is WSMsgType.ERROR:
                return
            if self._leaving:
                continue
            if message.type is WSMsgType.TEXT:
                self._reading.clear()
                await self._handle(message.data)
                self._reading.set()
            elif message.type is WSMsgType.BINARY:
                self.send(answers.binary_frame())
            await self._outbox.room()

    async def _handle(self, frame: str) -> None:
        try:
            message, warnings = read(frame, strict=self._strict)
        except BadRequest as exc:
            session_id, request_id = identify(frame)
            self.send(warned(answers.error_message(exc, session_id, given(request_id)), list(exc.warnings)))
            return
        if isinstance(message, Ping):
            pong = Pong(timestamp=answers.timestamp(), request_id=given(message.request_id))
            self.send(warned(pong, warnings))
            return
        await self._request(message, warnings)

    async def _request(self, message: SessionRequest | PrincipalRequest, warnings: list[str]) -> None:
        session_id, request_id = getattr(message, "session_id", None), given(message.request_id)

        def refuse(error: ErrorMessage) -> None:
            self.send(warned(error, warnings))

        answer: Callable[[ErrorMessage], None] = refuse
        try:
            if isinstance(message, PrincipalRequest):
                await PRINCIPAL_HANDLERS[type(message)](self, message, warnings)
            else:
                asker = await self._awake(message, warnings)
                answer = asker.answer
                if asker.workspace.executions.prompt is not None and not isinstance(message, InputReply):
                    remind(asker)
                await HANDLERS[type(message)](asker, message)
        except KernelBridgeError as exc:
            answer(answers.error_message(exc, session_id, request_id))
        except Exception:  # noqa: BLE001  a bug must cost one message, not the connection
            self._log.exception("message_failed", type=type(message).__name__)
            answer(answers.internal_error(session_id, request_id))

    async def _awake(self, message: SessionRequest, warnings: list[str]) -> Asker:
        """Attach to the request's session; if it is paused, wait until it is not, or only see to that."""
        asker = Asker.of(self, message, warnings)
        while (pausing := asker.workspace.pausing).asleep:
            pausing.wake()
            if type(message) in WITHOUT_SANDBOX:
                break
            await pausing.awake()
            asker = Asker.of(self, message, warnings)  # it may have been closed meanwhile
        return asker

    # -- what handlers see (`client.Client`) -------------------------------------

    @property
    def open(self) -> bool:
        """False once it is gone; also once it was cut off, which its client may hear of much later."""
        return not self._outbox.closed

    def workspace(self, session_id: str) -> Workspace:
        """Find or make a session of this connection's user, and use it."""
        workspace = self.registry.attach(SessionKey(self.user_id, session_id), self.id)
        if self.streams:
            workspace.feed.join(self)
        return workspace

    def send(self, message: ServerMessage) -> None:
        """Queue an answer."""
        self._outbox.put(encode(message))

    def put_frame(self, frame: bytes, unsent: Unsent | None = None) -> None:
        """Queue a frame; `unsent` is called if the connection ends before it is sent."""
        self._outbox.put(frame, unsent)

    def offer_frame(self, frame: bytes, unsent: Unsent | None = None) -> bool:
        """Queue a frame, unless what the client has not read yet is too much already."""
        return self._outbox.offer(frame, unsent)

    @property
    def backlog(self) -> int:
        """Bytes that the client has not read yet."""
        return self._outbox.size

    async def room(self, level: int = HIGH_WATER) -> None:
        """Wait until at most `level` bytes are not read yet, or the client is gone."""
        await self._outbox.room(level)

    def on_close(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called when the connection is gone; the result takes that back."""
        token = object()
        self._on_close[token] = call

        def forget() -> None:
            self._on_close.pop(token, None)

        return forget
