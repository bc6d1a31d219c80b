"""What one connection moves: counted, slowed down to the session's rate, and ended when nothing moves for too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from kernelbridge.egress.allowance import Allowance
from kernelbridge.egress.tls import Stream

IDLE_SECONDS = 600.0
"""How long a connection may stand still in both directions."""
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


class Meter:
    """Counts the bytes of one connection, and watches over its pace."""

    def __init__(
        self,
        allowance: Allowance,
        moved: Moved,
        *,
        idle: float = IDLE_SECONDS,
        half_closed: float = HALF_CLOSED_SECONDS,
    ) -> None:
        """Count nothing yet. `moved` is kept up to date; `idle` and `half_closed` are in seconds."""
        self._allowance, self._moved = allowance, moved
        self._patience, self._half_closed = idle, half_closed
        self._loop = asyncio.get_running_loop()
        self._deadline: asyncio.Timeout

    def watch(self) -> asyncio.Timeout:
        """Return a context that ends with `TimeoutError` when nothing has moved for too long."""
        self._deadline = asyncio.timeout(self._patience)
        return self._deadline

    def sent(self, count: int) -> float:
        """Count a read of bytes for the host; return the seconds to wait before the next. Raises `UsedUpError`."""
        self._moved.sent += count
        return self._count(count)

    def received(self, count: int) -> float:
        """Count a read of bytes from the host; return the seconds to wait before the next. Raises `UsedUpError`."""
        self._moved.received += count
        return self._count(count)

    def touch(self, *, always: bool = False) -> None:
        """Start to wait anew; not at each chunk unless `always`, because timers cost something."""
        due, now = self._deadline.when(), self._loop.time()
        if always or due is None or due - now < 0.9 * self._patience:
            self._deadline.reschedule(now + self._patience)

    def half_closed(self) -> None:
        """From now on, wait less long: one side has said everything."""
        self._patience = self._half_closed
        self.touch(always=True)

    def _count(self, count: int) -> float:
        if self._allowance.used_up:
            raise UsedUpError
        self.touch()
        return self._allowance.spend(count, self._loop.time())


class MeteredStream:
    """A stream that counts what it receives, and waits before it receives more."""

    def __init__(self, below: Stream, meter: Meter, count: Callable[[int], float]) -> None:
        """`count` is `meter.sent` or `meter.received`."""
        self._below, self._meter, self._count = below, meter, count
        self._wait = 0.0

    async def receive(self, most: int) -> bytes:
        """Return what came, up to `most` bytes; `b""` at the end. Raises `OSError`. Cancellation loses nothing."""
        await asyncio.sleep(self._wait)
        data = await self._below.receive(most)
        self._wait = self._count(len(data))
        return data

    async def send(self, data: bytes) -> None:
        """Send all of `data`, or a part of it when cancelled. Raises `OSError`."""
        await self._below.send(data)
        self._meter.touch()

    async def end(self) -> None:
        """Say that nothing more will be sent. Idempotent."""
        await self._below.end()
