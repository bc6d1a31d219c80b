"""One byte budget for what the server holds for all connections: unfinished and unhandled messages, unread answers.

When it is exceeded, connections are ended until it is not: the largest connection of the user whose connections hold
most. Such a client gets an error, and a moment to read it. What its connection holds still counts meanwhile; if that is
too much, the connection is dropped at once.

Connections are ended in the event loop's next step, not in the call that exceeds the budget: that call may be sending
to several clients. So the budget may be exceeded by what is read or answered in one step.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

SHARED = 64 << 10
"""A frame of at least this many bytes counts once, even if it waits in several connections."""
UNKNOWN = object()
"""The user of all connections without a known user. They count as one user: else many strangers that hold little each
would exceed the budget, and a real user would be ended first."""


class Buffers:
    """The budget of `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        """Bytes that are held now."""
        self._holdings: set[Holding] = set()
        self._shared: Counter[int] = Counter()
        """In how many connections each large frame waits, by its `id`."""
        self._scheduled = False

    def open(self, *, end: Callable[[], None], drop: Callable[[], None]) -> Holding:
        """Return the account of a new connection.

        `end` sends the client an error and closes; before it returns, it releases what it can. `drop` closes at once.
        """
        holding = Holding(self, end, drop)
        self._holdings.add(holding)
        return holding

    def check(self) -> None:
        """Schedule the end of connections if too much is held."""
        if self.held > self.limit and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._enforce)

    def _enforce(self) -> None:
        """End connections until the budget is no longer exceeded."""
        self._scheduled = False
        while self.held > self.limit and (holding := self._largest()) is not None:
            if holding.ending:
                holding.close()
                holding.drop()
            else:
                holding.ending = True
                holding.end()

    def _largest(self) -> Holding | None:
        """Return the connection to end next: one that is ending already, or the largest of the largest user."""
        holding = [one for one in self._holdings if one.size]
        if any(one.ending for one in holding):
            return max((one for one in holding if one.ending), key=lambda one: one.size)
        users: Counter[object] = Counter()
        for one in holding:
            users[one.user] += one.size
        return max(holding, key=lambda one: (users[one.user], one.size), default=None)

    # -- for `Holding` -------------------------------------------------------------

    def share(self, frame: bytes) -> None:
        """Count a large frame for one more connection."""
        self._shared[id(frame)] += 1
        if self._shared[id(frame)] == 1:
            self.held += len(frame)

    def unshare(self, frame: bytes) -> None:
        """Count a large frame for one connection less."""
        self._shared[id(frame)] -= 1
        if not self._shared[id(frame)]:
            del self._shared[id(frame)]
            self.held -= len(frame)

    def forget(self, holding: Holding) -> None:
        """Remove an account."""
        self._holdings.discard(holding)


class Holding:
    """The account of one connection: what is held for it."""

    def __init__(self, buffers: Buffers, end: Callable[[], None], drop: Callable[[], None]) -> None:
        self.user: object = UNKNOWN
        """The user of the connection."""
        self.ending = False
        self.end = end
        self.drop = drop
        self._buffers = buffers
        self._incoming = 0
        self._outgoing = 0
        self._large: list[bytes] = []
        """Waiting frames that count once for all connections."""
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes that are held for the connection."""
        return self._incoming + self._outgoing

    def incoming(self, size: int) -> None:
        """Set how many bytes from the client are not handled yet."""
        if self._closed:
            return
        more, self._incoming = size - self._incoming, size
        self._buffers.held += more
        if more > 0:
            self._buffers.check()

    def add(self, frame: bytes) -> None:
        """Add a frame that waits to be sent."""
        if self._closed:
            return
        self._outgoing += len(frame)
        if len(frame) < SHARED:
            self._buffers.held += len(frame)
        else:
            self._large.append(frame)
            self._buffers.share(frame)
        self._buffers.check()

    def remove(self, frame: bytes) -> None:
        """Remove a frame that was added."""
        if self._closed:
            return
        self._outgoing -= len(frame)
        if len(frame) < SHARED:
            self._buffers.held -= len(frame)
        else:
            del self._large[next(at for at, one in enumerate(self._large) if one is frame)]
            self._buffers.unshare(frame)

    def close(self) -> None:
        """Release everything and stop counting. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._buffers.held -= self.size - sum(map(len, self._large))
        for frame in self._large:
            self._buffers.unshare(frame)
        self._large.clear()
        self._incoming = self._outgoing = 0
        self._buffers.forget(self)
