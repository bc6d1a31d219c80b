"""The bounded queue of frames to one client."""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web

from kernelbridge.server.websocket.buffers import Holding

HIGH_WATER = 4 << 20
"""Bytes of unsent frames above which no more requests are read from the client."""
LIMIT = 160 << 20
"""Bytes of unsent frames above which the client is cut off: two of the largest default results, and some more."""

Unsent = Callable[[], None]
"""Called for a frame that was not sent before the connection ended."""


class Outbox:
    """Sends frames in order. A client that reads slowly costs at most `LIMIT` bytes."""

    def __init__(
        self,
        ws: web.WebSocketResponse[Any],
        holding: Holding | None = None,
        wrote: Callable[[int], None] = lambda _size: None,
    ) -> None:
        """Queue frames for `ws`. `holding` counts them in the server's budget until they are written.

        `wrote` is called with the bytes of each frame that was written.
        """
        self._ws = ws
        self._holding = holding
        self._wrote = wrote
        self._sending: bytes | None = None
        self._frames: deque[tuple[bytes, Unsent | None]] = deque()
        self._size = 0
        self._wake = asyncio.Event()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._empty = asyncio.Event()
        self.overflowed = False
        self._closed = False

    def put(self, frame: bytes, unsent: Unsent | None = None) -> None:
        """Queue a text frame. If the connection has ended or was cut off, it is dropped and `unsent` is called."""
        if not self._closed and self._size and self._size + len(frame) > LIMIT:
            self.overflowed = True
            self.close()
        if self._closed:
            if unsent is not None:
                unsent()
            return
        self._frames.append((frame, unsent))
        self._empty.clear()
        self._size += len(frame)
        self._wake.set()
        if self._holding is not None:
            self._holding.add(len(frame))

    def offer(self, frame: bytes, unsent: Unsent | None = None) -> bool:
        """Queue a text frame unless too much is unsent already. Returns whether it was queued."""
        if self._closed or self._size > HIGH_WATER:
            return False
        self.put(frame, unsent)
        return not self._closed

    @property
    def closed(self) -> bool:
        """Whether the connection has ended or was cut off, so that nothing more is sent."""
        return self._closed

    @property
    def size(self) -> int:
        """Unsent bytes."""
        return self._size

    async def room(self, level: int = HIGH_WATER) -> None:
        """Wait until at most `level` bytes are unsent, or the client is gone. By default, until `offer` would queue."""
        if self._closed or (self._size <= level and self._next() is None):
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting[waiter] = level
        try:
            await waiter
        finally:
            del self._waiting[waiter]
            # Wake them one after the other; one that waits again is last. Else the first would always take all room.
            loop.call_soon(self._wake_waiting)

    async def sent(self) -> None:
        """Wait until all frames have been passed to the connection, or the client is gone."""
        await self._empty.wait()

    def close(self) -> None:
        """Drop all unsent frames and end `run`. Idempotent."""
        self._closed = True
        frames, self._frames = self._frames, deque()
        for frame, unsent in frames:
            # The frame that is being written counts until that is done, or the connection has ended.
            if frame is not self._sending and self._holding is not None:
                self._holding.remove(len(frame))
            if unsent is not None:
                unsent()
        self._wake_waiting()
        self._empty.set()
        self._wake.set()

    async def run(self) -> None:
        """Send frames until closed. Returns when the client's connection ends."""
        try:
            while not self._closed:
                while self._frames:
                    frame, _ = self._frames[0]
                    self._sending = frame
                    await self._ws.send_frame(frame, WSMsgType.TEXT)
                    self._sending = None
                    self._wrote(len(frame))
                    if self._holding is not None:
                        self._holding.remove(len(frame))
                    if not self._frames:
                        return  # closed meanwhile
                    self._frames.popleft()
                    self._size -= len(frame)
                    self._wake_waiting()
                self._wake.clear()
                self._empty.set()
                if not self._frames and not self._closed:
                    await self._wake.wait()
        except (ConnectionError, asyncio.CancelledError) as exc:
            # The traceback is in a cycle with the task, and would keep the frame until garbage is collected.
            traceback.clear_frames(exc.__traceback__)
            frame = b""
            if isinstance(exc, asyncio.CancelledError):
                raise
            self.close()
        finally:
            self._sending = None

    def _next(self) -> asyncio.Future[None] | None:
        """Return the first waiter that has room now, woken already or not."""
        return next((waiter for waiter, level in self._waiting.items() if self._size <= level), None)

    def _wake_waiting(self) -> None:
        for waiter in list(self._waiting) if self._closed else [self._next()]:
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
