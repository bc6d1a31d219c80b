"""The bounded queue between a session's answers and one client's socket."""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web

from kernelbridge.server.websocket.buffers import Holding

HIGH_WATER = 4 << 20
"""Bytes of unsent answers above which no more requests are read from the client."""
LIMIT = 160 << 20
"""Bytes of unsent answers above which the client is cut off: two of the largest default results and some."""

Unsent = Callable[[], None]
"""Called for a frame that the connection did not take before it ended."""


class Outbox:
    """Sends frames in order; a client that reads slowly costs at most `LIMIT` bytes."""

    def __init__(self, ws: web.WebSocketResponse[Any], holding: Holding | None = None) -> None:
        """Queue for `ws`; `holding` counts in the server's budget what waits here, and what is being written."""
        self._ws = ws
        self._holding = holding
        self._sending: bytes | None = None
        self._frames: deque[tuple[bytes, Unsent | None]] = deque()
        self._size = 0
        self._wake = asyncio.Event()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.overflowed = False
        self._closed = False

    def put(self, frame: bytes, unsent: Unsent | None = None) -> None:
        """Queue a text frame; dropped when the client is gone or was cut off, which `unsent` is then told."""
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
            self._holding.put(frame)

    def offer(self, frame: bytes, unsent: Unsent | None = None) -> bool:
        """Queue a text frame that may be left out, unless too much waits already; say whether it was queued."""
        if self._closed or self._size > HIGH_WATER:
            return False
        self.put(frame, unsent)
        return not self._closed

    @property
    def closed(self) -> bool:
        """Whether nothing more is sent: the client is gone, or was cut off."""
        return self._closed

    @property
    def size(self) -> int:
        """Bytes that are not sent yet."""
        return self._size

    async def room(self, level: int = HIGH_WATER) -> None:
        """Wait until at most `level` bytes are not sent yet, or the client is gone; by default, enough to be heard."""
        if self._closed or (self._size <= level and self._next() is None):
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting[waiter] = level
        try:
            await waiter
        finally:
            del self._waiting[waiter]
            # One after the other, and whoever comes again is behind them: the first would else take all room each time.
            loop.call_soon(self._wake_waiting)

    async def sent(self) -> None:
        """Wait until all that was put has been handed to the connection, or the client is gone."""
        await self._empty.wait()

    def close(self) -> None:
        """Drop what is unsent and end `run`. Idempotent."""
        self._closed = True
        frames, self._frames = self._frames, deque()
        for frame, unsent in frames:
            # One that is on its way counts until the connection has written it, or is gone.
            if frame is not self._sending and self._holding is not None:
                self._holding.taken(frame)
            if unsent is not None:
                unsent()
        self._wake_waiting()
        self._empty.set()
        self._wake.set()

    async def run(self) -> None:
        """Send until closed; ends by itself when the client's connection is gone."""
        try:
            while not self._closed:
                while self._frames:
                    frame, _ = self._frames[0]
                    self._sending = frame
                    await self._ws.send_frame(frame, WSMsgType.TEXT)
                    self._sending = None
                    if self._holding is not None:
                        self._holding.taken(frame)
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
            # Its traceback is in a cycle with the task, and would hold the frame until garbage is collected.
            traceback.clear_frames(exc.__traceback__)
            frame = b""
            if isinstance(exc, asyncio.CancelledError):
                raise
            self.close()
        finally:
            self._sending = None

    def _next(self) -> asyncio.Future[None] | None:
        """Give the first of those who have room now, woken already or not."""
        return next((waiter for waiter, level in self._waiting.items() if self._size <= level), None)

    def _wake_waiting(self) -> None:
        for waiter in list(self._waiting) if self._closed else [self._next()]:
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
