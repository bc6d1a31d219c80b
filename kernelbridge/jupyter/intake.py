"""From a kernel's frames to messages: the signature of a large one is checked off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from kernelbridge.jupyter import wire
from kernelbridge.jupyter.bounded import Overflow

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


async def refuse_lost(channel: str, exited: asyncio.Task[Any], refuse: Callable[[str], None], seconds: float) -> None:
    """Have a kernel ended that has closed a channel and does not exit: it has gone mad, or sent too much."""
    done, _ = await asyncio.wait({exited}, timeout=seconds)
    if not done:
        refuse(f"it closed its {channel} channel, or sent more in one message than is allowed")


class Intake:
    """Verifies the messages of one kernel, and hands them over in the order of their channel.

    `take` is called with channel and message, and may raise `BadFrame`; `refuse` with what the kernel did wrong.
    `spawn` runs what takes longer, until the kernel's end. A message has at most `limit` bytes. While `behind` gives
    a future that is not done, no more output is read.
    """

    def __init__(
        self,
        codec: wire.Codec,
        *,
        limit: int,
        take: Callable[[str, wire.Message], None],
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

    def received(self, channel: str, frames: list[bytes]) -> asyncio.Future[None] | None:
        """Take the frames of one message; see `channels.Received`."""
        size = sum(map(len, frames))
        if size > self._limit:
            self._refuse("it sent more in one message than is allowed")
            return None
        if size > _IN_THREAD:
            return self._spawn(self._take_large(channel, frames))
        try:
            self._take(channel, self._codec.parse(frames))
        except wire.BadFrame as exc:
            self._refuse(f"it sent {exc}")
        return self._behind() if channel == "iopub" else None

    async def _take_large(self, channel: str, frames: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._take(channel, await loop.run_in_executor(None, self._codec.parse, frames))
        except wire.BadFrame as exc:
            self._refuse(f"it sent {exc}")
        later = self._behind() if channel == "iopub" else None
        if later is not None:
            await asyncio.shield(later)
