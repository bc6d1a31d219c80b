"""A real server in this process, whose sandboxes are plain processes of this host: no container, no bubblewrap."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from kernelbridge.server.app import running
from kernelbridge.server.websocket.heartbeat import Patience
from kernelbridge.settings.settings import resolve

PATIENCE = 60.0
"""Seconds after which a wait is a failure."""

Frame = dict[str, Any]


@dataclass
class Client:
    """One WebSocket; remembers frames that nobody asked for yet."""

    ws: aiohttp.ClientWebSocketResponse
    frames: list[Frame] = field(default_factory=list)

    async def send(self, **message: object) -> None:
        await self.ws.send_str(json.dumps(message))

    async def receive(self) -> Frame:
        message = await asyncio.wait_for(self.ws.receive(), PATIENCE)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        frame: Frame = json.loads(message.data)
        return frame

    async def ask(self, **message: object) -> Frame:
        """Send and give the next frame."""
        await self.send(**message)
        return await self.receive()

    async def answer_to(self, request_id: str) -> Frame:
        """Return the next frame with this requestId; those before it are remembered."""
        return await self.until(requestId=request_id)

    async def run(self, code: str, *, session: str = "s", **more: object) -> Frame:
        """Execute a cell and give the next frame."""
        return await self.ask(type="execute_code", sessionId=session, code=code, **more)

    async def shell(self, command: str, *, session: str = "s", **more: object) -> Frame:
        """Run a terminal command and give the next frame."""
        return await self.ask(type="terminal_command", sessionId=session, command=command, **more)

    async def until(self, **wanted: object) -> Frame:
        """Return the next frame with these fields; those before it are remembered."""
        while not wanted.items() <= (frame := await self.receive()).items():
            self.frames.append(frame)
        return frame

    async def closed(self) -> tuple[int, str]:
        """Return the code and reason with which the server closes; what it says before is remembered."""
        while (message := await asyncio.wait_for(self.ws.receive(), PATIENCE)).type is aiohttp.WSMsgType.TEXT:
            self.frames.append(json.loads(message.data))
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        return message.data, message.extra or ""


class Wire:
    """A TCP connection to a server: what no client library sends is sent here."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def head(self) -> bytes:
        """Return an answer's head."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def everything(self) -> bytes:
        """Return what comes until the server closes."""
        async with asyncio.timeout(PATIENCE):
            got = bytearray()
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    got += data
            return bytes(got)

    async def frame(self) -> tuple[int, bytes]:
        """Return the opcode and the payload of the server's next frame."""
        async with asyncio.timeout(PATIENCE):
            first, second = await self.reader.readexactly(2)
            length = second
            if second >= 126:
                data = await self.reader.readexactly(2 if second == 126 else 8)
                length = int.from_bytes(data, "big")
            return first & 0x0F, await self.reader.readexactly(length)

    async def ending(self) -> tuple[list[Frame], int, str]:
        """Return what the server says, and the code and reason with which it closes."""
        said = []
        while (frame := await self.frame())[0] == 1:
            said.append(json.loads(frame[1]))
        assert frame[0] == 8, frame
        return said, struct.unpack("!H", frame[1][:2])[0], frame[1][2:].decode()


UPGRADE = (
    b"GET /ws?user_id=%s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclass
class RunningServer:
    """Where it listens and how to connect."""

    url: str
    data_dir: Path
    http: aiohttp.ClientSession
    metrics: str | None = None
    """Where its metrics are."""

    @property
    def origin(self) -> str:
        return self.url.replace("ws", "http", 1).removesuffix("/ws")

    def file(self, path: str, *, session: str = "s", user: str = "u") -> str:
        """Return the URL of a session's file."""
        return f"{self.origin}/api/sessions/{session}/files/{path}?user_id={user}"

    @asynccontextmanager
    async def connect(self, user_id: str | None = None, query: str = "", **options: Any) -> AsyncIterator[Client]:
        url = f"{self.url}?{query}" + ("" if user_id is None else f"&user_id={user_id}")
        async with self.http.ws_connect(url, max_msg_size=0, **options) as ws:
            client = Client(ws)
            assert (await client.receive())["type"] == "connected"
            yield client

    @asynccontextmanager
    async def wire(self, *, buffer: int = 1 << 16) -> AsyncIterator[Wire]:
        """Connect; nothing is sent. No more than `buffer` bytes are taken ahead of who reads."""
        address = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=buffer)
        try:
            yield Wire(reader, writer)
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def upgraded(self, user_id: str = "u", **options: Any) -> AsyncIterator[Wire]:
        """Connect and open a WebSocket; the frame that confirms it has been read."""
        async with self.wire(**options) as wire:
            wire.write(UPGRADE % user_id.encode())
            assert (await wire.head()).startswith(b"HTTP/1.1 101 ")
            assert (await wire.frame())[0] == 1
            yield wire


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, length: int | None = None) -> bytes:
    """Return a client's frame, with a mask of zeros; `length` is what it says of its payload, if that is more."""
    announced = len(payload) if length is None else length
    first = (0x80 if fin else 0) | opcode
    if announced < 126:
        head = bytes((first, 0x80 | announced))
    elif announced < 1 << 16:
        head = struct.pack("!BBH", first, 0xFE, announced)
    else:
        head = struct.pack("!BBQ", first, 0xFF, announced)
    return head + bytes(4) + payload


def text(**message: object) -> bytes:
    """Return a request as one frame."""
    return masked(1, json.dumps(message).encode())


T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]]) -> T:
    """Return the first true result of `look`, for what another thread or the server does by itself."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await look()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return found


StartServer = Callable[..., Awaitable[RunningServer]]


async def start_at(stack: AsyncExitStack, data: Path, patience: Patience, flags: dict[str, Any]) -> RunningServer:
    """Start a server that runs until the stack is closed."""
    settings = resolve(
        {
            "runtime": "local",
            "isolation": False,
            "port": "0",
            "data_dir": str(data),
            "linger": "0",
            "stop_timeout": "0",
            **flags,
        },
        {},
    )
    context = running(settings, on_progress=lambda _line: None, patience=patience)
    report = await stack.enter_async_context(context)
    http = await stack.enter_async_context(aiohttp.ClientSession())
    return RunningServer(report.url, settings.data_dir, http, report.metrics)


@pytest.fixture
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    """Start servers with flags of the test's choice."""
    async with AsyncExitStack() as stack:

        async def start(patience: Patience = Patience(), **flags: Any) -> RunningServer:  # noqa: B008 - frozen
            return await start_at(stack, tmp_path / "data", patience, flags)

        yield start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """One server for all tests of a module; each test is a user of its own."""
    async with AsyncExitStack() as stack:
        yield await start_at(stack, tmp_path_factory.mktemp("server") / "data", Patience(), {})
