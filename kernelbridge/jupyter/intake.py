"""Turns a kernel's frames into messages; the signature of a large message is checked in a thread.

A message is handled in slices (`aio/turns.py`), and the next one of its channel is read when that has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol

import structlog

from kernelbridge.aio.turns import turns
from kernelbridge.jupyter import wire
from kernelbridge.jupyter.bounded import Spill

log = structlog.get_logger(__name__)

Consumer = Callable[[str, wire.RawMessage], object]
"""Called with each message of a kernel, and the name of its channel: `shell`, `iopub`, `stdin` or `control`.

The event loop calls it, in the order of each channel, and it must not block. Nothing is queued for it: it has to bound
what it keeps. A consumer that raises is called no more.
"""

_IN_THREAD = 1 << 20  # bytes from which a signature takes too long for the event loop


class Spills(Protocol):
    """Stores the output of a kernel's cells that is too large for a message."""

    def new(self) -> Spill | None:
        """Return what stores the output of one cell, or None if that is not stored."""

    def behind(self) -> asyncio.Future[None] | None:
        """Return None, or a future that is done when it has caught up; until then nothing should be written."""


class _NoSpills:
    def new(self) -> None:
        return None

    def behind(self) -> None:
        return None


NO_SPILLS: Spills = _NoSpills()


class Intake:
    """Verifies the messages of one kernel, and passes them on in the order of their channel.

    `handle` is called with channel and message. It returns a generator that handles the message in slices and may raise
    `BadFrame`. `on_fault` is called with what the kernel did wrong. `spawn` starts a task that lasts until the kernel's
    end at most. A message has at most `limit` bytes. While `behind` returns a future, no more output is read.
    """

    def __init__(
        self,
        codec: wire.Codec,
        *,
        limit: int,
        handle: Callable[[str, wire.Message], Generator[None, None, None]],
        on_fault: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        behind: Callable[[], asyncio.Future[None] | None],
    ) -> None:
        self._codec = codec
        self._limit = limit
        self._handle = handle
        self._on_fault = on_fault
        self._spawn = spawn
        self._behind = behind
        self._being_handled = 0
        self.consumers: set[Consumer] = set()

    @property
    def unread(self) -> bool:
        """Whether there may be output that has not been handled yet."""
        return self._being_handled > 0 or self._behind() is not None

    def received(self, channel: str, frames: list[bytes]) -> asyncio.Future[None] | None:
        """Handle the frames of one message; see `channels.Received`."""
        size = sum(map(len, frames))
        if size > self._limit:
            self._on_fault("it sent a message that is too large")
            return None
        if size > _IN_THREAD:
            return self._spawn(self._handle_large(channel, frames))
        try:
            message = self._codec.parse(frames)
        except wire.BadFrame as exc:
            self._on_fault(f"it sent {exc}")
            return None
        if self.consumers:
            self._notify_consumers(channel, frames)
        later = turns().begin(self._handling(channel, message))
        return later or (self._behind() if channel == "iopub" else None)

    def _handling(self, channel: str, message: wire.Message) -> Generator[None, None, None]:
        self._being_handled += 1
        try:
            yield from self._handle(channel, message)
        except wire.BadFrame as exc:
            self._on_fault(f"it sent {exc}")
        finally:
            self._being_handled -= 1

    def _notify_consumers(self, channel: str, frames: list[bytes]) -> None:
        message = wire.raw_message(frames)
        for consumer in tuple(self.consumers):
            try:
                consumer(channel, message)
            except Exception:  # a bug in a consumer must cost no cell its messages
                log.exception("kernel_consumer_failed")
                self.consumers.discard(consumer)

    async def _handle_large(self, channel: str, frames: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        try:
            message = await loop.run_in_executor(None, self._codec.parse, frames)
        except wire.BadFrame as exc:
            self._on_fault(f"it sent {exc}")
            return
        if self.consumers:
            self._notify_consumers(channel, frames)
        frames.clear()  # they may be large, and the message has their content
        await turns().run(self._handling(channel, message))
        later = self._behind() if channel == "iopub" else None
        if later is not None:
            await asyncio.shield(later)
