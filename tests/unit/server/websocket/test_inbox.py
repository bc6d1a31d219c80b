"""What a client sends counts until it is handled, control frames too."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from kernelbridge.server.listening import accepting, bind
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.inbox import ENOUGH, OVERHEAD
from kernelbridge.server.websocket.socket import Socket
from kernelbridge.server.websocket.tcp import TcpConnection
from tests.unit.server.conftest import PATIENCE, UPGRADE, Wire, masked

PING, PONG = 9, 10


@dataclass
class Busy:
    """A server that handles a message only when the test lets it."""

    buffers: Buffers = field(default_factory=lambda: Buffers(1 << 30))
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    received: list[bytes] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        ws = Socket(request, max_message=1000, message_timeout=PATIENCE)
        await ws.prepare(request)
        with TcpConnection.of(request).handling(request):
            await self.goes_on.wait()
            async for message in ws:
                self.received.append(message.data)
                ws.inbox.handled(len(message.data))
        return ws

    async def holds(self, least: int, most: int) -> None:
        """Wait until so many bytes are held."""
        async with asyncio.timeout(PATIENCE):
            while not least <= self.buffers.held <= most:  # noqa: ASYNC110  it has no event for that
                await asyncio.sleep(0)


@pytest.fixture
async def busy() -> Busy:
    return Busy()


@pytest.fixture
async def wire(busy: Busy) -> AsyncIterator[Wire]:
    app = web.Application()
    app.router.add_get("/ws", busy.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    sockets = await bind("127.0.0.1", 0)
    async with accepting(runner, sockets, busy.buffers):
        wire = Wire(*await asyncio.open_connection(*sockets[0].getsockname()))
        wire.write(UPGRADE % b"u")
        await wire.head()
        yield wire
        busy.goes_on.set()
        wire.writer.close()
    await runner.cleanup()


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_a_control_frame_counts_until_it_is_handled(busy: Busy, wire: Wire, opcode: int) -> None:
    wire.write(masked(opcode, b"abc") * 10, masked(1, b"text"))
    size = 10 * (3 + OVERHEAD) + 4 + OVERHEAD
    await busy.holds(size, size)
    busy.goes_on.set()
    await busy.holds(0, 0)
    assert busy.received == [b"text"]


async def test_many_pings_count_and_are_answered_in_their_turn(busy: Busy, wire: Wire) -> None:
    """Here they are more than may wait, though what the client sends has fewer bytes than that."""
    payloads = [b"%d" % number for number in range(2 * ENOUGH // OVERHEAD)]
    wire.write(*(masked(PING, payload) for payload in payloads), masked(1, b"text"))
    await busy.holds(ENOUGH, busy.buffers.limit)
    busy.goes_on.set()
    assert [await wire.frame() for _ in payloads] == [(PONG, payload) for payload in payloads]
    await busy.holds(0, 0)
    assert busy.received == [b"text"]
