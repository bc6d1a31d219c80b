"""Clients that vanish without a word, on sockets that answer nothing by themselves; and clients that only seem to."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from kernelbridge.server.websocket.heartbeat import Patience
from tests.integration.conftest import PATIENCE, RunningServer, StartServer

pytestmark = pytest.mark.parametrize("runtime_name", ["local"])

SHORT = Patience(ping=0.25, drop=0.75)
PING, PONG, TEXT = 0x9, 0xA, 0x1


class BareClient:
    """A WebSocket as bytes: it answers a ping only if the test does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, kind: int, data: bytes) -> None:
        """Send one frame, with a mask of zeros."""
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        self.writer.write(bytes([0x80 | kind]) + length + bytes(4) + data)

    def request(self, **message: object) -> None:
        self.send(TEXT, json.dumps(message).encode())

    async def frame(self) -> tuple[int, bytes]:
        """Give the next frame's kind and content."""
        async with asyncio.timeout(PATIENCE):
            kind, length = await self.reader.readexactly(2)
            if length >= 126:
                length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8), "big")
            return kind & 0xF, await self.reader.readexactly(length)

    async def answer(self) -> dict[str, object]:
        """Give the next message; until it comes the client is alive."""
        while True:
            kind, data = await self.frame()
            if kind == PING:
                self.send(PONG, data)
            elif kind == TEXT:
                found: dict[str, object] = json.loads(data)
                return found

    async def until_a_message_begins(self) -> None:
        """Answer pings until a message comes, and read no more of that than what tells it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                kind, length = await self.reader.readexactly(2)
                if kind & 0xF == TEXT:
                    return
                self.send(PONG, await self.reader.readexactly(length))

    async def next_ping(self) -> bytes:
        while True:
            kind, data = await self.frame()
            if kind == PING:
                return data

    async def rest(self) -> bytes:
        """Read until the server ends the connection."""
        read = bytearray()
        async with asyncio.timeout(PATIENCE):
            try:
                while data := await self.reader.read(1 << 16):
                    read += data
            except ConnectionResetError:
                pass
        return bytes(read)


@asynccontextmanager
async def bare_client(server: RunningServer, *, buffer: int = 1 << 20) -> AsyncIterator[BareClient]:
    address = urlsplit(server.url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)  # noqa: FBT003 - the standard library's
    await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 16)
    writer.write(
        f"GET /ws?user_id=u HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    client = BareClient(reader, writer)
    assert (await client.answer())["type"] == "connected"
    try:
        yield client
    finally:
        writer.transport.abort()


async def until_nothing_runs(server: RunningServer) -> None:
    """Wait, by answers of the server, until it has no sandbox."""
    async with server.connect("another") as other, asyncio.timeout(PATIENCE):
        while list((server.data_dir / "run").iterdir()):
            await other.ask(type="ping")


async def test_a_client_that_vanishes_is_asked_dropped_and_its_session_ends(start_server: StartServer) -> None:
    server = await start_server(patience=SHORT, linger="200ms")
    async with bare_client(server) as client:
        client.request(type="execute_code", sessionId="s", code="print('here')")
        assert (await client.answer())["output"] == "here\n"
        last_words = await client.rest()
        # It was asked, nothing else was said, and it answered nothing.
        assert last_words.count(bytes([0x80 | PING, 0])) == len(last_words) / 2 >= 1
        await until_nothing_runs(server)


@pytest.mark.parametrize("sign", ["a pong", "a byte of an unfinished message"])
async def test_whatever_comes_of_a_client_is_a_sign_of_life(start_server: StartServer, sign: str) -> None:
    server = await start_server(patience=SHORT)
    async with bare_client(server) as client:
        if sign != "a pong":
            client.writer.write(bytes([0x80 | TEXT, 0x80 | 125]) + bytes(4))
        # Each ping is silence of its length: together they are far longer than a silent client is waited for.
        for _ in range(int(4 * SHORT.drop / SHORT.ping)):
            data = await client.next_ping()
            if sign == "a pong":
                client.send(PONG, data)
            else:
                client.writer.write(b" ")
        if sign == "a pong":
            client.request(type="ping", requestId="1")
            assert (await client.answer())["type"] == "pong"
        # Now it is silent, and that is noticed as ever.
        await client.rest()


async def test_a_client_that_reads_a_backlog_slowly_lives_and_one_that_does_not_is_dropped(
    start_server: StartServer,
) -> None:
    patience = Patience(ping=1, drop=4)
    server = await start_server(patience=patience)
    loop = asyncio.get_running_loop()
    size = 8_000_000
    async with server.connect("u") as owner:
        # Started for one who answers pings whatever it waits for: a start may take longer than silence may.
        assert (await owner.run("pass"))["success"]
        async with bare_client(server, buffer=4096) as slow, bare_client(server, buffer=4096) as deaf:
            slow.reader._limit = deaf.reader._limit = 1  # type: ignore[attr-defined]  # what is not asked for is not read
            for client in (deaf, slow):
                client.request(type="execute_code", sessionId="s", code=f"print('x' * {size})")
                await client.until_a_message_begins()
            # It has the pings behind what it reads, and reads for far longer than a silent client is waited for.
            read, began = 0, loop.time()
            pause = 2 * patience.drop / (size / (1 << 15))
            while read < size:
                async with asyncio.timeout(PATIENCE):
                    data = await slow.reader.read(1 << 15)
                assert data, "the one that reads was dropped"
                read += len(data)
                if loop.time() - began < 2 * patience.drop:
                    await asyncio.wait({loop.create_future()}, timeout=pause)
            assert loop.time() - began > 1.5 * patience.drop
            assert not slow.reader.at_eof()
            deaf.reader._limit = 1 << 16  # type: ignore[attr-defined]
            assert len(await deaf.rest()) < size


async def test_a_large_result_that_a_vanished_client_did_not_take_is_there_when_it_comes_back(
    start_server: StartServer,
) -> None:
    """Larger than the journal, and on its way when the server gave the connection up."""
    server = await start_server(patience=Patience(ping=1, drop=5), linger="60s", max_output="64m", journal_size="1m")
    async with server.connect("u") as other:
        assert (await other.run("pass"))["success"]
        async with bare_client(server, buffer=4096) as vanished, asyncio.timeout(PATIENCE):
            vanished.reader._limit = 1  # type: ignore[attr-defined]  # what is not asked for is not read
            vanished.request(type="execute_code", sessionId="s", code="print('z' * 8_000_000)", requestId="big")
            await vanished.until_a_message_begins()
            while (await other.ask(type="session_info", sessionId="s"))["connections"] > 1:
                pass
        await other.send(type="resume", sessionId="s")
        await other.send(type="execute_code", sessionId="s", code="pass", requestId="end")
        await other.answer_to("end")
        found = {frame.get("requestId"): frame for frame in other.frames}
        assert found["big"]["output"] == "z" * 8_000_000 + "\n"
