"""One client's connection: reads its messages, has them handled, and sends the answers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

import structlog
from aiohttp import WSCloseCode, WSMsgType
from msgspec import UNSET

from kernelbridge.aio.turns import TURN, turns
from kernelbridge.audit.audit import By
from kernelbridge.errors import BadRequest, KernelBridgeError
from kernelbridge.identity.logins import Login
from kernelbridge.identity.principal import Identity
from kernelbridge.protocol import PrincipalRequest, ServerMessage, SessionRequest
from kernelbridge.protocol.base import timestamp
from kernelbridge.protocol.cells import InputReply
from kernelbridge.protocol.codec import LARGE, read, reading
from kernelbridge.protocol.messages import Connected, ErrorMessage, Ping, Pong
from kernelbridge.rates import Pace
from kernelbridge.server.websocket.buffers import Holding
from kernelbridge.server.websocket.handlers import HANDLERS, PRINCIPAL_HANDLERS, WITHOUT_SANDBOX, answers
from kernelbridge.server.websocket.handlers.audited import note_request
from kernelbridge.server.websocket.handlers.interpreter import remind
from kernelbridge.server.websocket.handlers.request_context import RequestContext, echoed, encode, with_warnings
from kernelbridge.server.websocket.outbox import HIGH_WATER, Outbox, Unsent
from kernelbridge.server.websocket.socket import Socket, is_text
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.workspace import Workspace

log = structlog.get_logger(__name__)


class Connection:
    """Serves one client until its connection ends."""

    def __init__(
        self,
        ws: Socket,
        *,
        login: Login,
        streams: bool,
        strict: bool,
        registry: Registry,
        warning: str | None,
        pace: Pace,
        holding: Holding | None = None,
        address: str | None = None,
    ) -> None:
        """`strict` refuses requests with unknown fields. `warning` is part of the first message."""
        self._pace = pace
        self.id = secrets.token_hex(8)
        self.principal = login.identity.principal
        self.streams = streams
        self.registry = registry
        self._ws = ws
        self._login = login
        self._strict = strict
        self._warning = warning
        self._address = address
        self._outbox = Outbox(ws, holding, registry.metrics.wrote)
        self._on_close: dict[object, Callable[[], None]] = {}
        self._reading = asyncio.Event()
        self._reading.set()
        self._log = log.bind(connection=self.id)

    async def run(self) -> None:
        """Send `connected`, then read and answer until the connection ends."""
        self._log.info("connected", user_id=self.principal.subject)
        self.registry.audit.connected(By(self.principal, connection=self.id, address=self._address))
        self.send(
            Connected(
                connection_id=self.id,
                user_id=self.principal.subject,
                timestamp=timestamp(),
                warning=self._warning or UNSET,
            )
        )
        writer = asyncio.get_running_loop().create_task(self._write())
        self._ws.on_end = self._outbox.close
        self._ws.pace = lambda size: self._pace.wait(requests=1, size=size)
        try:
            await self._read()
        finally:
            self._outbox.close()
            for call in list(self._on_close.values()):
                call()
            self.registry.detach(self.id)
            # It may be waiting for a client that has stopped reading.
            writer.cancel()
            await asyncio.wait([writer])
            await self._ws.cut_off_done()
            self._log.info("disconnected", code=int(self._ws.close_code or 0))
            self.registry.audit.disconnected(By(self.principal, connection=self.id), int(self._ws.close_code or 0))

    async def close(self, seconds: float) -> None:
        """Finish the current message, send what waits, then close with 1001. The client has `seconds` to answer that.

        Messages that the server has not read yet are not handled.
        """
        await self._reading.wait()
        await self._outbox.sent()
        await self._ws.close_gracefully(WSCloseCode.GOING_AWAY, b"the server stops", seconds=seconds)

    async def _write(self) -> None:
        await self._outbox.run()
        if self._outbox.overflowed:
            self._log.warning("client_too_slow")
            await self._ws.close(code=WSCloseCode.POLICY_VIOLATION, message=b"answers were not read in time")

    async def _read(self) -> None:
        end = time.monotonic() + TURN
        async for message in self._ws:
            if message.type is WSMsgType.ERROR:
                return
            if not self._ws.closing:  # a message after the server's close is not handled
                if message.type is WSMsgType.BINARY:
                    self._refuse_binary()
                elif not is_text(message.data):
                    await self._ws.refuse_invalid_text()
                    return
                else:
                    self._reading.clear()
                    await self._handle(message.data)
                    self._reading.set()
            self._ws.inbox.handled(len(message.data))
            if (wait := self._pace.wait(requests=1, size=len(message.data))) > 0:
                await asyncio.sleep(wait)
            await self._outbox.room()
            if time.monotonic() > end:
                # Hundreds of messages may wait already: nothing above would let other clients have their turn.
                await asyncio.sleep(0)
                end = time.monotonic() + TURN

    def _refuse_binary(self) -> None:
        error = BadRequest("The frame is binary", "expected a text frame with one JSON object", code="binary_frame")
        self.refused(error, "message", None, None)
        self.send(answers.error_message(error))

    async def _handle(self, frame: bytes) -> None:
        try:
            if len(frame) > LARGE:
                message, warnings = await turns().run(reading(frame, strict=self._strict))
            else:
                message, warnings = read(frame, strict=self._strict)
        except BadRequest as exc:
            self.refused(exc, "message", exc.session_id, exc.request_id)
            error = answers.error_message(exc, exc.session_id, echoed(exc.request_id))
            self.send(with_warnings(error, list(exc.warnings)))
            return
        if isinstance(message, Ping):
            pong = Pong(timestamp=timestamp(), request_id=echoed(message.request_id))
            self.send(with_warnings(pong, warnings))
            return
        await self._request(message, warnings)

    async def _request(self, message: SessionRequest | PrincipalRequest, warnings: list[str]) -> None:
        session_id, request_id = getattr(message, "session_id", None), echoed(message.request_id)

        def refuse(error: ErrorMessage) -> None:
            self.send(with_warnings(error, warnings))

        answer: Callable[[ErrorMessage], None] = refuse
        try:
            if isinstance(message, PrincipalRequest):
                await PRINCIPAL_HANDLERS[type(message)](self, message, warnings)
            else:
                context = await self._attach(message, warnings)
                answer = context.answer
                note_request(self.registry.audit, By(self.principal, session_id, self.id, message.request_id), message)
                if context.workspace.executions.prompt is not None and not isinstance(message, InputReply):
                    remind(context)
                await HANDLERS[type(message)](context, message)
        except KernelBridgeError as exc:
            self.refused(exc, str(message.__struct_config__.tag), session_id, message.request_id)
            answer(answers.error_message(exc, session_id, request_id))
        except Exception:  # noqa: BLE001  a bug must cost one message, not the connection
            self._log.exception("message_failed", type=type(message).__name__)
            answer(answers.internal_error(session_id, request_id))

    async def _attach(self, message: SessionRequest, warnings: list[str]) -> RequestContext:
        """Attach to the request's session and resume it if it is paused, waiting for that if the sandbox is needed."""
        context = RequestContext.of(self, message, warnings)
        while (pausing := context.workspace.pausing).asleep:
            pausing.wake()
            if type(message) in WITHOUT_SANDBOX:
                break
            await pausing.awake()
            context = RequestContext.of(self, message, warnings)  # the session may have been closed meanwhile
        return context

    # -- what handlers see (`request_context.Client`) ----------------------------

    @property
    def open(self) -> bool:
        """False once the connection has ended or was cut off. The client may notice that much later."""
        return not self._outbox.closed

    def workspace(self, session_id: str) -> Workspace:
        """Return a session of this connection's user, opened if need be, and mark it as used here."""
        workspace = self.registry.attach(SessionKey(self.principal, session_id), self.id)
        if self.streams:
            workspace.feed.join(self)
        return workspace

    def renew_login(self, token: str) -> Identity:
        """Stay logged in with another token of the same principal."""
        return self._login.renew(token)

    def refuse_login(self, error: KernelBridgeError) -> None:
        """End the connection of a client that is not logged in any more."""
        self._ws.end_login(error)

    def send(self, message: ServerMessage) -> None:
        """Queue an answer."""
        self._outbox.put(encode(message))

    def refused(self, error: KernelBridgeError, what: str, session_id: str | None, request_id: str | None) -> None:
        """Count and audit an error that answers a request; `what` is the request's type."""
        self.registry.metrics.refused(error.code)
        by = By(self.principal, session_id, self.id, request_id)
        self.registry.audit.refused(by, what=what, code=error.code, reason=error.message)

    def put_frame(self, frame: bytes, unsent: Unsent | None = None) -> None:
        """Queue a frame; `unsent` is called if the connection ends before it is sent."""
        self._outbox.put(frame, unsent)

    def offer_frame(self, frame: bytes, unsent: Unsent | None = None) -> bool:
        """Queue a frame, unless too much is unread already. Returns whether it was queued."""
        return self._outbox.offer(frame, unsent)

    @property
    def backlog(self) -> int:
        """Bytes that the client has not read yet."""
        return self._outbox.size

    async def room(self, level: int = HIGH_WATER) -> None:
        """Wait until at most `level` bytes are unread, or the client is gone."""
        await self._outbox.room(level)

    def on_close(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call `call` when the connection ends. Returns a function that cancels this."""
        token = object()
        self._on_close[token] = call

        def forget() -> None:
            self._on_close.pop(token, None)

        return forget
