"""What a client sends on its WebSocket, until it is handled: counted, in bounded time, in whole messages.

The inbox is between the connection and aiohttp's reader (`web.RequestHandler.set_parser`). The reader gets a message
when it is complete, and gets no more while enough messages wait to be handled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp.http import WebSocketReader

from kernelbridge.server.websocket.buffers import Holding
from kernelbridge.server.websocket.frames import MESSAGE_TOO_BIG, Frames, Violation

ENOUGH = 96 << 10
"""When more bytes of whole messages and control frames wait to be handled, the next ones are not read. It is less than
what aiohttp's reader accepts before it pauses the connection by itself (128 KiB)."""
OVERHEAD = 128
"""Bytes that a message or a control frame costs in addition to its payload."""
_FORBIDDEN = b"\x83\x80\0\0\0\0"
"""A frame that aiohttp's reader refuses. It queues a violation after the messages that came before it."""


class Inbox:
    """What one client sends. `overdue` is called when a message is incomplete `timeout` seconds after it began."""

    def __init__(
        self,
        *,
        max_message: int,
        timeout: float,
        holding: Holding,
        hold_back: Callable[[bool], None],
        overdue: Callable[[], None],
    ) -> None:
        """`hold_back` stops reading from the connection (True) or continues (False)."""
        self.violation: Violation | None = None
        """Why the connection ends, if the client broke a rule."""
        self.ended = asyncio.Event()
        """Set when the client is gone or, after `drop`, has closed."""
        self._frames = Frames(max_message)
        self._timeout = timeout
        self._holding = holding
        self._hold_back = hold_back
        self._overdue = overdue
        self._reader: WebSocketReader | None = None
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        """Bytes that are not cut into messages yet."""
        self._waiting = 0
        """Bytes of whole messages and control frames that are not handled yet."""
        self._messages = 0
        """How many of these are messages."""
        self.dropping = False
        """Whether everything but the client's close is ignored."""
        self._held_back = False
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timed = 0
        """Number of the message that the timer is for."""
        self._paused = False
        """Whether aiohttp has paused the connection."""

    def allow(self, max_message: int) -> None:
        """Accept messages of `max_message` bytes from now on."""
        self._frames.max_message = max_message

    def deliver_to(self, reader: WebSocketReader) -> None:
        """Pass messages to `reader` from now on."""
        self._reader = reader

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Add bytes of the client; see `aiohttp.web.RequestHandler.set_parser`."""
        if self.violation is not None and self.violation.code != MESSAGE_TOO_BIG:
            return False, b""  # it is unknown where the next frame begins
        self._rest = self._rest + data if self._rest else data
        if self._turn is None:
            self._cut()
        return False, b""

    def feed_eof(self) -> None:
        """Mark the connection as ended."""
        self._stop()
        self.ended.set()
        # Now: a connection's objects are in reference cycles, which the garbage collector frees much later.
        self._frames.drop()
        self._rest = b""
        if self._reader is not None:
            self._reader.feed_eof()

    def handled(self, size: int) -> None:
        """Mark a message with `size` bytes of payload as handled."""
        self._messages -= 1
        self._release(size)

    def control_handled(self, size: int) -> None:
        """Mark a ping or pong with `size` bytes of payload as handled."""
        self._release(size)

    def paused(self) -> None:
        """Note that aiohttp has paused the connection."""
        self._paused = True
        self._watch()

    def resumed(self) -> None:
        """Note that aiohttp reads from the connection again."""
        self._paused = False
        self._watch()

    def drop(self) -> None:
        """Drop the unfinished message and all that follows, except for the client's close."""
        self.dropping = True
        self._frames.drop()
        self._stop()
        self._cut()

    def _cut(self) -> None:
        """Cut bytes into messages until enough wait to be handled; after some frames, other clients have their turn."""
        self._turn = None
        more = False
        if self._rest and (self._waiting <= ENOUGH or self.dropping):
            taken = self._frames.take(self._rest)
            self._rest = self._rest[taken.used :]
            more = taken.more
            if not self.dropping:
                self._waiting += taken.size + taken.control_size + (taken.messages + taken.controls) * OVERHEAD
                self._messages += taken.messages
                for whole in taken.whole:
                    self._deliver(bytes(whole))
            elif taken.closes:
                self.ended.set()
            if taken.violation is not None:
                self._violated(taken.violation)
        if more:
            self._turn = self._loop.call_soon(self._cut)
        # Not for an incomplete header: its rest has to be read.
        self._hold(more or (self._waiting > ENOUGH and bool(self._rest) and not self.dropping))
        self._watch()
        self._count()

    def _release(self, size: int) -> None:
        self._waiting -= size + OVERHEAD
        if self._rest and self._turn is None:
            self._cut()
        else:
            self._watch()
            self._count()

    def _deliver(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.feed_data(data)

    def _violated(self, violation: Violation) -> None:
        self.violation = violation
        if violation.code != MESSAGE_TOO_BIG:
            self._rest = b""
        if not self.dropping:  # else the connection ends already
            self.dropping = True
            self._frames.drop()
            self._deliver(_FORBIDDEN)

    def _hold(self, back: bool) -> None:  # noqa: FBT001  the new state
        if back or self._held_back:
            self._held_back = back
            self._hold_back(back)

    def _watch(self) -> None:
        """Start or stop the timer of the unfinished message: a client cannot finish a message that is not read.

        Only messages that wait to be handled stop the timer, which starts anew after them: they came before the
        unfinished one. Control frames may come after its beginning, so a client that keeps sending them would have
        unlimited time.
        """
        unfinished = self._frames.unfinished or bool(self._rest)
        if not unfinished or self.dropping or self.ended.is_set():
            self._cancel_timer()
            return
        stopped = self._messages > 0 and (self._held_back or self._paused)
        if stopped or self._timed != self._frames.started:
            self._cancel_timer()
        self._timed = self._frames.started
        if not stopped and self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._overdue)

    def _count(self) -> None:
        self._holding.incoming(self._frames.held + len(self._rest) + self._waiting)

    def _stop(self) -> None:
        self._cancel_timer()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
