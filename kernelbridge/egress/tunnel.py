"""Copying between a program's connection and the host that it reaches, until both have said everything."""

from __future__ import annotations

import asyncio

from kernelbridge.egress.meter import Meter
from kernelbridge.egress.tls import CHUNK, Stream


class Tunnel:
    """Two connections, and the bytes between them. The caller closes the connections."""

    def __init__(self, inside: Stream, outside: Stream, meter: Meter) -> None:
        """Copy nothing yet."""
        self._inside, self._outside, self._meter = inside, outside, meter

    async def run(self, first: bytes, *, body: int | None = None) -> None:
        """Send `first` to the host, and copy both ways until both sides have ended.

        With `body`, no more than so many bytes of the program are sent on, `first` excluded, and what it sends after
        them is not read. Raises `OSError` when a connection breaks, `TimeoutError` when nothing moves for too long, and
        `UsedUpError`. When cancelled, what is under way is lost.
        """
        try:
            async with self._meter.watch(), asyncio.TaskGroup() as group:
                group.create_task(self._send(first, body))
                group.create_task(self._receive())
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None

    async def _send(self, first: bytes, body: int | None) -> None:
        await self._pass(first, self._outside, self._meter.sent(len(first)))
        left = body
        while left is None or left > 0:
            data = await self._inside.receive(CHUNK if left is None else min(CHUNK, left))
            if not data:
                break
            left = None if left is None else left - len(data)
            await self._pass(data, self._outside, self._meter.sent(len(data)))
        if body is None:
            await self._outside.end()
            self._meter.half_closed()

    async def _receive(self) -> None:
        while data := await self._outside.receive(CHUNK):
            await self._pass(data, self._inside, self._meter.received(len(data)))
        await self._inside.end()
        self._meter.half_closed()

    async def _pass(self, data: bytes, to: Stream, wait: float) -> None:
        await asyncio.sleep(wait)
        await to.send(data)
        self._meter.touch()


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group that is no group itself."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
