import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

from kernelbridge.runtimes.docker_attach import Attached
from kernelbridge.runtimes.docker_control import ControlChannel
from kernelbridge.runtimes.docker_engine import Engine
from tests.docker.faulty_engine import PATIENCE


class LateEngine:
    """Attaches only when it is told to."""

    timeout = PATIENCE

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.end, self._given = socket.socketpair()
        self.end.settimeout(PATIENCE)
        self._given.settimeout(0)

    async def call(self, _job: Callable[[Any], Attached], **_how: object) -> Attached:
        self.asked.set()
        await self.answer.wait()
        return Attached(self._given, b"")


async def running() -> None:
    """Wait for nothing: the container is not paused."""


async def test_a_connection_that_comes_after_the_end_is_hung_up() -> None:
    engine = LateEngine()
    control = ControlChannel("c", engine=cast("Engine", engine), until_running=running)
    asked = asyncio.create_task(control.is_alive(1))
    await engine.asked.wait()
    await control.aclose()
    engine.answer.set()
    async with asyncio.timeout(PATIENCE):
        assert await asked is None
    with engine.end:
        assert await asyncio.to_thread(engine.end.recv, 1) == b""
