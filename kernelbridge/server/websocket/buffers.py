"""One byte budget for what the server holds for all connections: unfinished and unhandled messages, unread answers.

When it is used up, connections are ended until it is not: of the user whose connections hold most, the one that holds
most. Such a connection is told, which takes a moment in which its client has to read; what it still holds
counts meanwhile, and if that is too much, it is dropped without more words.

Nobody is ended within the call that holds more, which may be in the midst of telling several: it is done as the event
loop's next step. So the budget may be exceeded by what is read or answered in one step.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

SHARED = 64 << 10
"""Bytes from which on a frame counts once, however many connections it waits for."""
UNKNOWN = object()
"""The user of all connections of whom that is not known. They are one: else many strangers that hold a little each
would have whoever holds more than one of them ended first."""


class Buffers:
    """The budget, `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        """Bytes that count."""
        self._holdings: set[Holding] = set()
        self._shared: Counter[int] = Counter()
        """For how many connections each large frame waits, by its `id`."""
        self._due = False

    def open(self, *, end: Callable[[], None], drop: Callable[[], None]) -> Holding:
        """Begin to count for a connection.

        `end` tells it that it holds too much, and closes it; whatever it can let go of at once it releases before it
        returns. `drop` closes it at once.
        """
        holding = Holding(self, end, drop)
        self._holdings.add(holding)
        return holding

    def check(self) -> None:
        """See to it that connections are ended, if too much is held."""
        if self.held > self.limit and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._enforce)

    def _enforce(self) -> None:
        """End connections until what is held is within the limit."""
        self._due = False
        while self.held > self.limit and (holding := self._largest()) is not None:
            if holding.ending:
                holding.close()
                holding.drop()
            else:
                holding.ending = True
                holding.end()

    def _largest(self) -> Holding | None:
        """Give the connection to end next: one that is ending already, or the largest of the largest user."""
        holding = [one for one in self._holdings if one.size]
        if any(one.ending for one in holding):
            return max((one for one in holding if one.ending), key=lambda one: one.size)
        users: Counter[object] = Counter()
        for one in holding:
            users[one.user] += one.size
        return max(holding, key=lambda one: (users[one.user], one.size), default=None)

    # -- for `Holding` -------------------------------------------------------------

    def share(self, frame: bytes) -> None:
        """Count a large frame that one more connection holds."""
        self._shared[id(frame)] += 1
        if self._shared[id(frame)] == 1:
            self.held += len(frame)

    def unshare(self, frame: bytes) -> None:
        """Count a large frame that one connection less holds."""
        self._shared[id(frame)] -= 1
        if not self._shared[id(frame)]:
            del self._shared[id(frame)]
            self.held -= len(frame)

    def forget(self, holding: Holding) -> None:
        """Count it no longer."""
        self._holdings.discard(holding)


class Holding:
    """What is held for one connection."""

    def __init__(self, buffers: Buffers, end: Callable[[], None], drop: Callable[[], None]) -> None:
        self.user: object = UNKNOWN
        """Whose connection it is."""
        self.ending = False
        self.end = end
        self.drop = drop
        self._buffers = buffers
        self._incoming = 0
        self._outgoing = 0
        self._large: list[bytes] = []
        """Of the frames that wait, those that count once for all connections."""
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes that are held for it."""
        return self._incoming + self._outgoing

    def incoming(self, size: int) -> None:
        """Note how much it has sent that is not handled yet."""
        if self._closed:
            return
        more, self._incoming = size - self._incoming, size
        self._buffers.held += more
        if more > 0:
            self._buffers.check()

    def put(self, frame: bytes) -> None:
        """Note a frame that waits until the client takes it."""
        if self._closed:
            return
        self._outgoing += len(frame)
        if len(frame) < SHARED:
            self._buffers.held += len(frame)
        else:
            self._large.append(frame)
            self._buffers.share(frame)
        self._buffers.check()

    def taken(self, frame: bytes) -> None:
        """Note that such a frame waits no longer."""
        if self._closed:
            return
        self._outgoing -= len(frame)
        if len(frame) < SHARED:
            self._buffers.held -= len(frame)
        else:
            del self._large[next(at for at, one in enumerate(self._large) if one is frame)]
            self._buffers.unshare(frame)

    def close(self) -> None:
        """Release everything and count nothing more. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._buffers.held -= self.size - sum(map(len, self._large))
        for frame in self._large:
            self._buffers.unshare(frame)
        self._large.clear()
        self._incoming = self._outgoing = 0
        self._buffers.forget(self)
