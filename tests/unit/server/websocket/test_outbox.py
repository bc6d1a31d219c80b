"""The queue in front of a client that reads slowly: who has something for it gets a turn."""

import asyncio
from typing import cast

import pytest
from aiohttp import WSMsgType, web

from kernelbridge.server.websocket import outbox as module
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.outbox import HIGH_WATER, Outbox

PATIENCE = 10.0


class SlowSocket:
    """A connection that accepts a frame only when the test lets it."""

    def __init__(self) -> None:
        self._allowed = asyncio.Semaphore(0)
        self._taken = asyncio.Event()
        self.taken = 0

    async def send_frame(self, _frame: bytes, _opcode: WSMsgType) -> None:
        await self._allowed.acquire()
        self.taken += 1
        self._taken.set()

    def allow(self) -> None:
        self._allowed.release()

    async def take(self, number: int) -> None:
        for _ in range(number):
            self._taken.clear()
            self.allow()
            await self._taken.wait()


async def test_those_who_wait_for_room_get_it_in_turn() -> None:
    """Else who floods one session would keep from the client what another has for it."""
    socket = SlowSocket()
    outbox = Outbox(cast("web.WebSocketResponse", socket))
    sending = asyncio.create_task(outbox.run())
    queued: list[str] = []

    async def go_on(name: str) -> None:
        while not outbox.closed:
            await outbox.room()
            if outbox.offer(b"x" * (HIGH_WATER + 1)):
                queued.append(name)
            await asyncio.sleep(0)

    going = [asyncio.create_task(go_on(name)) for name in ("a", "b", "c")]
    async with asyncio.timeout(PATIENCE):
        await socket.take(10)
        outbox.close()
        await asyncio.gather(*going)
        socket.allow()
        await sending
    assert queued[:9] == 3 * queued[:3]
    assert sorted(queued[:3]) == ["a", "b", "c"]


async def test_an_idle_client_gets_a_frame_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 10)
    socket = SlowSocket()
    outbox = Outbox(cast("web.WebSocketResponse", socket))
    sending = asyncio.create_task(outbox.run())
    outbox.put(b"x" * 11)
    assert not outbox.overflowed
    await socket.take(1)
    await outbox.sent()
    outbox.put(b"x" * 10)
    assert (outbox.overflowed, outbox.closed) == (False, False)
    outbox.put(b"x")
    assert (outbox.overflowed, outbox.closed) == (True, True)
    socket.allow()
    await sending


async def test_what_waits_is_counted_until_it_has_been_taken_or_dropped() -> None:
    buffers, socket = Buffers(1 << 30), SlowSocket()
    holding = buffers.open(end=pytest.fail, drop=pytest.fail)
    outbox = Outbox(cast("web.WebSocketResponse", socket), holding)
    sending = asyncio.create_task(outbox.run())
    for size in (1, 10, 100, 1000):
        outbox.put(bytes(size))
    assert buffers.held == 1111
    await socket.take(2)
    assert buffers.held == 1100
    outbox.close()
    assert buffers.held == 100  # which is on its way
    outbox.put(b"late")
    socket.allow()
    await sending
    assert buffers.held == 0
