"""How large a frame may be: exactly as large as is said, however it comes, over a real socket."""

import asyncio
import json
import os
import struct
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from kernelbridge.audit.audit import Audit
from kernelbridge.identity.logins import Login
from kernelbridge.identity.principal import Identity, Principal
from kernelbridge.metrics import Metrics
from kernelbridge.rates import Pace, Rates
from kernelbridge.server.listening import accepting, bind
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.connection import Connection
from kernelbridge.server.websocket.socket import Socket
from kernelbridge.workspace.registry import Registry

LIMIT = 70_000
PATIENCE = 60
TEXT, BINARY, CLOSE = 1, 2, 8


class Wire:
    """A client that writes each frame itself, and so can cut a message where it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, payload: bytes, opcode: int, *, final: bool = True) -> None:
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", final << 7 | opcode, 0x80 | length)
        elif length < 1 << 16:
            head = struct.pack("!BBH", final << 7 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", final << 7 | opcode, 0x80 | 127, length)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self._writer.write(head + mask + masked)

    async def receive(self) -> tuple[int, bytes]:
        async with asyncio.timeout(PATIENCE):
            first, length = await self._reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await self._reader.readexactly(2))
            return first & 15, await self._reader.readexactly(length)


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    registry = cast("Registry", SimpleNamespace(detach=lambda _: None, metrics=Metrics(), audit=Audit()))

    async def serve(request: web.Request) -> web.StreamResponse:
        ws = Socket(request, max_message=LIMIT, message_timeout=PATIENCE)
        await ws.prepare(request)
        await Connection(
            ws,
            login=Login(Identity(Principal())),
            streams=False,
            strict=False,
            registry=registry,
            warning=None,
            pace=Pace(Rates(0, 0), time.monotonic),
        ).run()
        return ws

    app = web.Application()
    app.router.add_get("/ws", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    sockets = await bind("127.0.0.1", 0)
    async with accepting(runner, sockets, Buffers(1 << 30)):
        reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        wire = Wire(reader, writer)
        assert b'"connected"' in (await wire.receive())[1]
        yield wire
        writer.close()
    await runner.cleanup()


def ping(size: int, request_id: str = "r") -> bytes:
    """Return a request of exactly so many bytes."""
    frame = json.dumps({"type": "ping", "requestId": request_id}, ensure_ascii=False).encode()
    return frame[:-1] + b" " * (size - len(frame)) + b"}"


def cut(message: bytes, *at: int) -> list[bytes]:
    return [message[start:end] for start, end in zip((0, *at), (*at, len(message)), strict=True)]


WAYS: dict[str, list[int]] = {
    "whole": [],
    "two parts": [30_000],
    "a last part of a byte": [-1],
    "an empty part": [100, 100],
    "many parts": list(range(1_000, 69_000, 1_000)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("request_id", ["r", "é" * 100])
async def test_a_frame_as_large_as_the_limit_is_accepted_and_one_byte_more_is_not(
    wire: Wire, way: str, request_id: str
) -> None:
    def send(size: int) -> None:
        message = ping(size, request_id)
        assert len(message) == size
        parts = cut(message, *(at % size for at in WAYS[way]))
        for number, part in enumerate(parts):
            wire.send(part, 0 if number else TEXT, final=number == len(parts) - 1)

    for size in (LIMIT - 1, LIMIT):
        send(size)
        assert await answer(wire) == ("pong", request_id)
    send(LIMIT + 1)
    opcode, refusal = await wire.receive()
    told: dict[str, Any] = json.loads(refusal)
    assert (opcode, told["code"]) == (TEXT, "frame_too_large")
    assert f"at most {LIMIT} bytes" in told["error"]
    assert await wire.receive() == (CLOSE, struct.pack("!H", 1009))


async def test_a_binary_frame_has_the_same_limit(wire: Wire) -> None:
    wire.send(b"x" * LIMIT, BINARY)
    assert json.loads((await wire.receive())[1])["code"] == "binary_frame"
    wire.send(b"x" * (LIMIT + 1), BINARY)
    assert json.loads((await wire.receive())[1])["code"] == "frame_too_large"


async def answer(wire: Wire) -> tuple[str, str]:
    _, frame = await wire.receive()
    told = json.loads(frame)
    return told["type"], told["requestId"]
