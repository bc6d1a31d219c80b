"""A frame that is written in parts reaches the client whole, whatever is sent or happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from kernelbridge.server.listening import accepting, bind
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.socket import Socket

PATIENCE = 60
LARGE = bytes(range(32, 127)) * 100_000  # 9.5 MB, which no system's buffers hold

Scenario = Callable[[Socket, asyncio.Task[None]], Awaitable[None]]
Serve = Callable[[Scenario], Awaitable[tuple[str, int]]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Return a function that starts a server; it sends LARGE, and runs the scenario while that is stuck."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(scenario: Scenario) -> tuple[str, int]:
            async def handle(request: web.Request) -> web.StreamResponse:
                ws = Socket(request, max_message=1000, message_timeout=PATIENCE)
                await ws.prepare(request)
                sending = asyncio.create_task(ws.send_frame(LARGE, WSMsgType.TEXT))
                await asyncio.sleep(0)  # the first part is written, and the system takes no more
                assert not sending.done()
                await scenario(ws, sending)
                return ws

            app = web.Application()
            app.router.add_get("/ws", handle)
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            sockets = await bind("127.0.0.1", 0)
            await stack.enter_async_context(accepting(runner, sockets, Buffers(1 << 30)))
            host, port = sockets[0].getsockname()
            return host, port

        yield start


async def received(client: aiohttp.ClientWebSocketResponse) -> aiohttp.WSMessage:
    return await asyncio.wait_for(client.receive(), PATIENCE)


async def ping(ws: Socket, sending: asyncio.Task[None]) -> None:
    await ws.ping(b"alive?")
    await sending


async def another(ws: Socket, sending: asyncio.Task[None]) -> None:
    await ws.send_frame(b"small", WSMsgType.TEXT)
    await ws.send_frame(LARGE[::-1], WSMsgType.TEXT)
    await sending


async def close(ws: Socket, _: asyncio.Task[None]) -> None:
    await ws.close(message=b"bye")


async def cancel(ws: Socket, sending: asyncio.Task[None]) -> None:
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await ws.send_frame(b"small", WSMsgType.TEXT)


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        (ping, [(WSMsgType.PING, b"alive?")]),
        (another, [(WSMsgType.TEXT, "small"), (WSMsgType.TEXT, LARGE[::-1].decode())]),
        (close, [(WSMsgType.CLOSE, 1000)]),
        (cancel, [(WSMsgType.TEXT, "small")]),
    ],
)
async def test_what_is_sent_meanwhile_arrives_after_it(
    serve: Serve, scenario: Scenario, expected: list[tuple[WSMsgType, object]]
) -> None:
    host, port = await serve(scenario)
    url = f"http://{host}:{port}/ws"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, max_msg_size=0, autoping=False, autoclose=False) as client,
    ):
        first = await received(client)
        assert first.type is WSMsgType.TEXT
        assert first.data == LARGE.decode()
        for kind, data in expected:
            message = await received(client)
            assert (message.type, message.data) == (kind, data)


async def test_a_client_that_goes_meanwhile_is_an_error(serve: Serve) -> None:
    outcome: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def wait(_: Socket, sending: asyncio.Task[None]) -> None:
        await asyncio.wait([sending])
        outcome.set_result(sending.exception())

    reader, writer = await asyncio.open_connection(*await serve(wait))
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    assert isinstance(await asyncio.wait_for(outcome, PATIENCE), ConnectionError)
