"""What a client sends on its WebSocket, until it has been handled: counted, in bounded time, in whole messages.

It stands between the connection and aiohttp's reader (`web.RequestHandler.set_parser`), which gets nothing of a message
before all of it is there, and gets no more while enough waits to be handled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from kernelbridge.server.websocket.buffers import Holding
from kernelbridge.server.websocket.frames import MESSAGE_TOO_BIG, Frames, Violation

ENOUGH = 96 << 10
"""Bytes of whole messages and control frames that wait to be handled, above which the next ones are left where they
are. Less than what aiohttp's reader takes before it pauses the connection by itself (128 KiB)."""
OVERHEAD = 128
"""Bytes that a message or a control frame costs beside its payload."""
_FORBIDDEN = b"\x83\x80\0\0\0\0"
"""A frame that aiohttp's reader refuses: how a violation takes its turn behind the messages before it."""


class Reader(Protocol):
    """aiohttp's reader, as far as it is used."""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes of the client."""
        ...

    def feed_eof(self) -> None:
        """Note that nothing more comes."""
        ...


class Inbox:
    """What one client sends. `overdue` is called when a message is not finished `timeout` seconds after it began."""

    def __init__(
        self,
        *,
        max_message: int,
        timeout: float,
        holding: Holding,
        hold_back: Callable[[bool], None],
        overdue: Callable[[], None],
    ) -> None:
        """`hold_back` stops the connection from being read (True), or has it read again."""
        self.violation: Violation | None = None
        """Why the connection ends."""
        self.over = asyncio.Event()
        """Set when the client is gone or, after `drop`, has closed."""
        self._frames = Frames(max_message)
        self._timeout = timeout
        self._holding = holding
        self._hold_back = hold_back
        self._overdue = overdue
        self._reader: Reader | None = None
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        """What came and is not cut into messages yet."""
        self._waiting = 0
        """Bytes of whole messages and control frames that are not handled yet."""
        self._messages = 0
        """How many of these are messages."""
        self.dropping = False
        """Whether only the client's close is waited for."""
        self._held_back = False
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timed = 0
        """Which message the timer is for."""
        self._time_left: float | None = None
        """Seconds that it had when its time began or stopped."""
        self._paused = False
        """Whether aiohttp has enough."""

    def deliver_to(self, reader: Reader) -> None:
        """Hand on to `reader` from now on."""
        self._reader = reader

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take what came; see `aiohttp.web.RequestHandler.set_parser`."""
        if self.violation is not None and self.violation.code != MESSAGE_TOO_BIG:
            return False, b""  # nobody knows where the next frame begins
        self._rest = self._rest + data if self._rest else data
        if self._turn is None:
            self._go_on()
        return False, b""

    def feed_eof(self) -> None:
        """Note that the client is gone."""
        self._stop()
        self.over.set()
        # At once: what belongs to a connection is in cycles, which the garbage collector finds much later.
        self._frames.drop()
        self._rest = b""
        if self._reader is not None:
            self._reader.feed_eof()

    def handled(self, size: int) -> None:
        """Note that a message of so many bytes of payload has been handled."""
        self._messages -= 1
        self._let_go(size)

    def control_handled(self, size: int) -> None:
        """Note that a ping or a pong of so many bytes of payload has been handled."""
        self._let_go(size)

    def paused(self) -> None:
        """Note that aiohttp has the connection not read."""
        self._paused = True
        self._watch()

    def resumed(self) -> None:
        """Note that aiohttp has it read on."""
        self._paused = False
        self._watch()

    def drop(self) -> None:
        """Forget the unfinished message, and hand on no more; only the client's close is waited for."""
        self.dropping = True
        self._frames.drop()
        self._stop()
        self._go_on()

    def _go_on(self) -> None:
        """Cut what came, as far as enough does not wait already and no other client has to wait long for its turn."""
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
                    self._give(bytes(whole))
            elif taken.closes:
                self.over.set()
            if taken.violation is not None:
                self._violated(taken.violation)
        if more:
            self._turn = self._loop.call_soon(self._go_on)
        # An incomplete header is no reason: the rest of it has to come.
        self._hold(more or (self._waiting > ENOUGH and bool(self._rest) and not self.dropping))
        self._watch()
        self._count()

    def _let_go(self, size: int) -> None:
        self._waiting -= size + OVERHEAD
        if self._rest and self._turn is None:
            self._go_on()
        else:
            self._watch()
            self._count()

    def _give(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.feed_data(data)

    def _violated(self, violation: Violation) -> None:
        self.violation = violation
        if violation.code != MESSAGE_TOO_BIG:
            self._rest = b""
        if not self.dropping:  # else the connection is ending already
            self.dropping = True
            self._frames.drop()
            self._give(_FORBIDDEN)

    def _hold(self, back: bool) -> None:  # noqa: FBT001  the state that it is brought to
        if back or self._held_back:
            self._held_back = back
            self._hold_back(back)

    def _watch(self) -> None:
        """Let the time of the unfinished message run, or stop: no client can finish one that is not read.

        Only messages that wait to be handled stop it. They came before the unfinished one; control frames may come
        behind its beginning, and a client that goes on sending them would have all the time in the world.
        """
        unfinished = self._frames.unfinished or bool(self._rest)
        if not unfinished or self.dropping or self.over.is_set():
            self._cancel_timer()
            self._time_left = None
            return
        if self._time_left is None or self._timed != self._frames.started:
            self._cancel_timer()
            self._timed, self._time_left = self._frames.started, self._timeout
        stopped = self._messages > 0 and (self._held_back or self._paused)
        if stopped and self._timer is not None:
            self._time_left = self._timer.when() - self._loop.time()
            self._cancel_timer()
        elif not stopped and self._timer is None:
            self._timer = self._loop.call_later(self._time_left, self._overdue)

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
