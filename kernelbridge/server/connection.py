"""One WebSocket: its reader, and the answers to what it reads."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import secrets
import struct

import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import UNSET

from kernelbridge.errors import BadRequest, KernelBridgeError
from kernelbridge.jupyter.execution import Cell, Outcome
from kernelbridge.protocol import (
    ClientMessage,
    Connected,
    ExecuteCode,
    Ping,
    Pong,
    SaveFile,
    ServerMessage,
    TerminalCommand,
    dump,
    parse,
)
from kernelbridge.protocol.codec import identify
from kernelbridge.server import answers
from kernelbridge.server.outbox import Outbox
from kernelbridge.workspace.layout import SessionKey
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.shell import CommandOutcome

log = structlog.get_logger(__name__)

LAST_WORDS = 5.0
"""Seconds that a client has to read why its frame was refused."""


class Socket(web.WebSocketResponse):
    """A WebSocket that explains an oversized frame before it closes with 1009, so that the client can read both."""

    def __init__(self, request: web.Request, *, max_message: int, heartbeat: float) -> None:
        super().__init__(max_msg_size=max_message, heartbeat=heartbeat, compress=False)
        self._request = request
        self._max_message = max_message

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Close; see `aiohttp.web.WebSocketResponse.close`."""
        if code == WSCloseCode.MESSAGE_TOO_BIG and not self.closed:
            await self._refuse_frame()
        return await super().close(code=code, message=message, drain=drain)

    async def _refuse_frame(self) -> None:
        """Say why, then let the client close: what it still sends is discarded meanwhile.

        Closing at once, with its data unread, would reset the connection, and the client would see neither.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LAST_WORDS
        try:
            await self.send_frame(dump(answers.frame_too_large(self._max_message)), WSMsgType.TEXT)
            await self.send_frame(struct.pack("!H", WSCloseCode.MESSAGE_TOO_BIG), WSMsgType.CLOSE)
        except ConnectionError:
            return
        # aiohttp tells nobody that the connection is gone, so this is looked at.
        while self._request.transport is not None and loop.time() < deadline:
            await asyncio.wait({loop.create_future()}, timeout=LAST_WORDS / 100)


class Connection:
    """Serves one client until it leaves."""

    def __init__(self, ws: Socket, *, user_id: str | None, registry: Registry, warning: str | None) -> None:
        self.id = secrets.token_hex(8)
        self._ws = ws
        self._user_id = user_id
        self._registry = registry
        self._warning = warning
        self._outbox = Outbox(ws)
        self._log = log.bind(connection=self.id)

    async def run(self) -> None:
        """Confirm the connection, then read and answer until it ends."""
        self._log.info("connected", user_id=self._user_id)
        self._send(
            Connected(
                connection_id=self.id,
                user_id=self._user_id,
                timestamp=answers.timestamp(),
                warning=self._warning or UNSET,
            )
        )
        writer = asyncio.get_running_loop().create_task(self._write())
        try:
            await self._read()
        finally:
            self._registry.detach(self.id)
            self._outbox.close()
            # It may wait for a client that reads no more.
            writer.cancel()
            await asyncio.wait([writer])
            self._log.info("disconnected", code=int(self._ws.close_code or 0))

    async def hang_up(self) -> None:
        """Send what is waiting, then close with 1001."""
        await self._outbox.sent()
        await self._ws.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops")

    async def _write(self) -> None:
        await self._outbox.run()
        if self._outbox.overflowed:
            self._log.warning("client_too_slow")
            await self._ws.close(code=WSCloseCode.POLICY_VIOLATION, message=b"answers were not read in time")

    async def _read(self) -> None:
        async for message in self._ws:
            if message.type is WSMsgType.TEXT:
                await self._handle(message.data)
            elif message.type is WSMsgType.BINARY:
                self._send(answers.binary_frame())
            await self._outbox.room()

    async def _handle(self, frame: str) -> None:
        try:
            message = parse(frame)
        except BadRequest as exc:
            self._send(answers.error_message(exc, *identify(frame)))
            return
        session_id = None if isinstance(message, Ping) else message.session_id
        try:
            await self._dispatch(message)
        except KernelBridgeError as exc:
            self._send(answers.error_message(exc, session_id, message.request_id))
        except Exception:  # noqa: BLE001  a bug must cost one message, not the connection
            self._log.exception("message_failed", type=type(message).__name__)
            self._send(answers.internal_error(session_id, message.request_id))

    async def _dispatch(self, message: ClientMessage) -> None:
        match message:
            case ExecuteCode():
                cell = Cell(code=message.code, filename=message.filename or "main.py")
                done = functools.partial(self._executed, message.session_id, message.request_id)
                self._registry.attach(self._key(message.session_id), self.id).execute(cell, done)
            case TerminalCommand():
                answer = functools.partial(self._commanded, message.session_id, message.request_id)
                self._registry.attach(self._key(message.session_id), self.id).command(message.command, answer)
            case SaveFile():
                await self._save(message)
            case Ping():
                self._send(Pong(timestamp=answers.timestamp(), request_id=answers.given(message.request_id)))

    def _executed(self, session_id: str, request_id: str | None, outcome: Outcome | KernelBridgeError) -> None:
        if isinstance(outcome, KernelBridgeError):
            self._send(answers.error_message(outcome, session_id, request_id))
        else:
            self._send(answers.execution_result(outcome, session_id, request_id))

    def _commanded(self, session_id: str, request_id: str | None, outcome: CommandOutcome | KernelBridgeError) -> None:
        if isinstance(outcome, KernelBridgeError):
            self._send(answers.error_message(outcome, session_id, request_id))
        else:
            self._send(answers.terminal_output(outcome, session_id, request_id))

    async def _save(self, message: SaveFile) -> None:
        workspace = self._registry.attach(self._key(message.session_id), self.id)
        where = message.filename, message.session_id, message.request_id
        try:
            # Awaited here: no later message of this connection starts before the file is saved.
            result = await workspace.save(message.filename, _content(message))
        except KernelBridgeError as exc:
            self._send(answers.not_saved(exc, *where))
        else:
            self._send(answers.saved(result, *where))

    def _key(self, session_id: str) -> SessionKey:
        return SessionKey(self._user_id, session_id)

    def _send(self, message: ServerMessage) -> None:
        try:
            frame = dump(message)
        except Exception:  # noqa: BLE001  results hold whatever a kernel sent: whoever asked must hear of it
            self._log.exception("answer_not_written", type=type(message).__name__)
            session_id = getattr(message, "session_id", None)
            request_id = getattr(message, "request_id", UNSET)
            frame = dump(answers.internal_error(session_id, None if request_id is UNSET else request_id))
        self._outbox.put(frame)


def _content(message: SaveFile) -> bytes:
    if message.encoding != "base64":
        return message.content.encode()
    try:
        return base64.b64decode(message.content, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest("The field 'content' is not base64", str(exc), field="content", code="invalid_field") from exc
