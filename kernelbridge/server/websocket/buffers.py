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
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes that are held for the connection."""
        return self._incoming + self._outgoing

    def incoming(self, size: int) -> None:
        """Set how many bytes from the client are not handled yet."""
        self._incoming += self._count(size - self._incoming)

    def add(self, size: int) -> None:
        """Add a frame that waits to be sent."""
        self._outgoing += self._count(size)

    def remove(self, size: int) -> None:
        """Remove a frame that was added."""
        self._outgoing += self._count(-size)

    def close(self) -> None:
        """Release everything and stop counting. Idempotent."""
        self._count(-self.size)
        self._closed = True
        self._incoming = self._outgoing = 0
        self._buffers.forget(self)

    def _count(self, more: int) -> int:
        if self._closed:
            return 0
        self._buffers.held += more
        if more > 0:
            self._buffers.check()
        return more
