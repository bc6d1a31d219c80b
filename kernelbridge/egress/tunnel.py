"""Copying between a program's connection and the host that it reaches, until both have said everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from kernelbridge.egress.allowance import Allowance
from kernelbridge.egress.connection import Connection

CHUNK = 32 << 10
"""Bytes that are held in each direction."""
IDLE_SECONDS = 600.0
"""How long a tunnel may stand still in both directions."""
HALF_CLOSED_SECONDS = 60.0
"""The same when one side has said everything: a program that was killed looks like that."""


class UsedUpError(Exception):
    """The session has moved all the bytes that it may."""


@dataclass(slots=True)
class Moved:
    """What one connection has moved, in bytes."""

    sent: int = 0
    """To the host."""
    received: int = 0


class Tunnel:
    """Two connections, and the bytes between them. The caller closes the connections."""

    def __init__(
        self,
        inside: Connection,
        outside: Connection,
        allowance: Allowance,
        moved: Moved,
        *,
        idle: float = IDLE_SECONDS,
        half_closed: float = HALF_CLOSED_SECONDS,
    ) -> None:
        """Copy nothing yet. `moved` is kept up to date; `idle` and `half_closed` are in seconds."""
        self._inside, self._outside = inside, outside
        self._allowance = allowance
        self._moved = moved
        self._patience, self._half_closed = idle, half_closed
        self._loop = asyncio.get_running_loop()
        self._deadline: asyncio.Timeout

    async def run(self, first: bytes, *, body: int | None = None) -> None:
        """Send `first` to the host, and copy both ways until both sides have ended.

        With `body`, no more than so many bytes of the program are sent on, `first` excluded, and what it sends after
        them is not read. Raises `OSError` when a connection breaks, `TimeoutError` when nothing moves for too long, and
        `UsedUpError`. When cancelled, what is under way is lost.
        """
        try:
            async with asyncio.timeout(self._patience) as self._deadline, asyncio.TaskGroup() as group:
                group.create_task(self._send(first, body))
                group.create_task(self._receive())
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    async def _send(self, first: bytes, body: int | None) -> None:
        await self._pass(first, self._outside, self._count_sent)
        left = body
        while left is None or left > 0:
            data = await self._inside.receive(CHUNK if left is None else min(CHUNK, left))
            if not data:
                break
            left = None if left is None else left - len(data)
            await self._pass(data, self._outside, self._count_sent)
        if body is None:
            self._ended(self._outside)

    async def _receive(self) -> None:
        while data := await self._outside.receive(CHUNK):
            await self._pass(data, self._inside, self._count_received)
        self._ended(self._inside)

    async def _pass(self, data: bytes, to: Connection, count: Callable[[int], None]) -> None:
        if self._allowance.used_up:
            raise UsedUpError
        self._touch()
        count(len(data))
        await asyncio.sleep(self._allowance.spend(len(data), self._loop.time()))
        await to.send(data)
        self._touch()

    def _count_sent(self, count: int) -> None:
        self._moved.sent += count

    def _count_received(self, count: int) -> None:
        self._moved.received += count

    def _ended(self, other: Connection) -> None:
        """Pass on that one side has said everything."""
        other.end()
        self._patience = self._half_closed
        self._touch(always=True)

    def _touch(self, *, always: bool = False) -> None:
        """Start to wait anew; not at each chunk, because timers cost something."""
        due, now = self._deadline.when(), self._loop.time()
        if always or due is None or due - now < 0.9 * self._patience:
            self._deadline.reschedule(now + self._patience)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
