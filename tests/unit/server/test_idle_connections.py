"""Strangers who only connect: they do not use up the files that the server may open."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from kernelbridge.server import listening
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.tcp import TcpConnection
from tests.contract.driving import PATIENCE

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_the_oldest_connection_without_a_request_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "IDLE", 2)
    busy, goes_on = asyncio.Event(), asyncio.Event()

    async def serve(request: web.Request) -> web.Response:
        with TcpConnection.of(request).handling(request):
            busy.set()
            await goes_on.wait()
        return web.Response(text="served")

    app = web.Application()
    app.router.add_get("/", serve)
    async with AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        sockets = await listening.bind("127.0.0.1", 0)
        await stack.enter_async_context(listening.accepting(runner, sockets, Buffers(1 << 30)))

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(*sockets[0].getsockname())
            stack.callback(writer.close)
            return reader, writer

        used, request = await connect()
        stack.callback(goes_on.set)
        request.write(GET)
        await busy.wait()
        oldest, second, third = [(await connect())[0] for _ in range(3)]
        assert await oldest.read() == b""
        assert not second.at_eof()
        goes_on.set()
        assert b"200 OK" in await used.readline(), "it had a request"
        assert await second.read() == b"", "now that has none either"
        assert not third.at_eof()
