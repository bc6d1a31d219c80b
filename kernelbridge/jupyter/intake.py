"""From a kernel's frames to messages: the signature of a large one is checked off the event loop.

What a message says is taken in turns with what else there is to do (`aio/turns.py`), and the next one of its channel is
read when all of it has been taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol

import structlog

from kernelbridge.aio.turns import turns
from kernelbridge.jupyter import wire
from kernelbridge.jupyter.bounded import Overflow

log = structlog.get_logger(__name__)

Consumer = Callable[[str, wire.RawMessage], object]
"""Takes each message of a kernel, with the name of its channel: `shell`, `iopub`, `stdin` or `control`.

It is called from the event loop, in the order of each channel, and must not block. Nothing is kept for it: what it
cannot use at once it has to bound. One that raises is called no more.
"""

_IN_THREAD = 1 << 20  # bytes of a message that would keep everybody waiting


class Overflows(Protocol):
    """Where the output of a kernel goes that is too much for a message."""

    def new(self) -> Overflow | None:
        """Give what takes the output of one cell, or None if nothing does."""

    def behind(self) -> asyncio.Future[None] | None:
        """Give None, or what is done when it has caught up: until then no more should be written."""


class _NoOverflows:
    def new(self) -> None:
        return None

    def behind(self) -> None:
        return None


NO_OVERFLOWS: Overflows = _NoOverflows()


class Intake:
    """Verifies the messages of one kernel, and hands them over in the order of their channel.

    `take` is called with channel and message; what it gives does the taking, yields often, and may raise `BadFrame`.
    `refuse` is called with what the kernel did wrong.
    `spawn` runs what takes longer, until the kernel's end. A message has at most `limit` bytes. While `behind` gives
    a future that is not done, no more output is read.
    """

    def __init__(
        self,
        codec: wire.Codec,
        *,
        limit: int,
        take: Callable[[str, wire.Message], Generator[None, None, None]],
        refuse: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        behind: Callable[[], asyncio.Future[None] | None],
    ) -> None:
        self._codec = codec
        self._limit = limit
        self._take = take
        self._refuse = refuse
        self._spawn = spawn
        self._behind = behind
        self._under_way = 0
        self.consumers: set[Consumer] = set()

    @property
    def held(self) -> bool:
        """Whether output waits that has not been taken yet."""
        return self._under_way > 0 or self._behind() is not None

    def received(self, channel: str, frames: list[bytes]) -> asyncio.Future[None] | None:
        """Take the frames of one message; see `channels.Received`."""
        size = sum(map(len, frames))
        if size > self._limit:
            self._refuse("it sent more in one message than is allowed")
            return None
        if size > _IN_THREAD:
            return self._spawn(self._take_large(channel, frames))
        try:
            message = self._codec.parse(frames)
        except wire.BadFrame as exc:
            self._refuse(f"it sent {exc}")
            return None
        if self.consumers:
            self._tell_consumers(channel, frames)
        later = turns().begin(self._taking(channel, message))
        return later or (self._behind() if channel == "iopub" else None)

    def _taking(self, channel: str, message: wire.Message) -> Generator[None, None, None]:
        self._under_way += 1
        try:
            yield from self._take(channel, message)
        except wire.BadFrame as exc:
            self._refuse(f"it sent {exc}")
        finally:
            self._under_way -= 1

    def _tell_consumers(self, channel: str, frames: list[bytes]) -> None:
        message = wire.whole(frames)
        for consumer in tuple(self.consumers):
            try:
                consumer(channel, message)
            except Exception:
                log.exception("kernel_consumer_failed")  # the cells go on without it
                self.consumers.discard(consumer)

    async def _take_large(self, channel: str, frames: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        try:
            message = await loop.run_in_executor(None, self._codec.parse, frames)
        except wire.BadFrame as exc:
            self._refuse(f"it sent {exc}")
            return
        if self.consumers:
            self._tell_consumers(channel, frames)
        frames.clear()  # they may be large, and what is in them is in the message
        await turns().run(self._taking(channel, message))
        later = self._behind() if channel == "iopub" else None
        if later is not None:
            await asyncio.shield(later)
