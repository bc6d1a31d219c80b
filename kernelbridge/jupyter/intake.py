"""From a kernel's frames to messages: the signature of a large one is checked off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kernelbridge.jupyter import wire

_IN_THREAD = 1 << 20  # bytes of a message that would keep everybody waiting


class Intake:
    """Verifies the messages of one kernel, and hands them over in the order of their channel.

    `take` is called with channel and message, and may raise `BadFrame`; `refuse` with what the kernel did wrong.
    `spawn` runs what takes longer, until the kernel's end. A message has at most `limit` bytes.
    """

    def __init__(
        self,
        codec: wire.Codec,
        *,
        limit: int,
        take: Callable[[str, wire.Message], None],
        refuse: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._codec = codec
        self._limit = limit
        self._take = take
        self._refuse = refuse
        self._spawn = spawn

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
        return None

    async def _take_large(self, channel: str, frames: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._take(channel, await loop.run_in_executor(None, self._codec.parse, frames))
        except wire.BadFrame as exc:
            self._refuse(f"it sent {exc}")
