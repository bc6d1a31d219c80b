"""Limits on the number of sessions, and the order in which sandboxes start; pure.

Above a limit, a session is refused with `LimitExceeded`; the same request may succeed later. Starts are not refused:
they wait in a queue that serves users in turn. A user who starts twenty sessions delays others by one start only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from kernelbridge.errors import LimitExceeded
from kernelbridge.workspace.session_key import SessionKey

T = TypeVar("T")
SUCCESSORS = 100
"""How often a session may be opened and closed again while its first close is still under way."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions may be open at a time."""

    per_user: int
    in_all: int

    def check(self, key: SessionKey, open_now: Collection[SessionKey]) -> None:
        """Raise `LimitExceeded` if the session `key` cannot be opened in addition to those that are open."""
        if key in open_now:
            return
        if sum(1 for other in open_now if other.principal == key.principal) >= self.per_user:
            raise LimitExceeded(
                "Too many sessions are open for this user",
                f"the limit is {self.per_user}; close one with close_session, or wait until an unused one has ended",
            )
        if len(open_now) >= self.in_all:
            raise LimitExceeded(
                "Too many sessions are open on this server",
                f"the limit is {self.in_all}; try again when others have ended, or ask its operator for more",
            )


def check_successors(count: int) -> None:
    """Raise `LimitExceeded` if a session has been opened again too often while it is being closed."""
    if count >= SUCCESSORS:
        raise LimitExceeded(
            "The session was opened and closed too often while its close was still in progress",
            "send the request again after the answer to close_session",
        )


class FairQueue(Generic[T]):
    """A limited number of turns. Waiters get them user by user; each user's own waiters in the order of arrival."""

    def __init__(self, turns: int) -> None:
        self._free = turns
        self._waiting: dict[str | None, deque[T]] = {}
        """By user. The first user is served next, and then moves to the end."""

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def acquire(self, user: str | None, waiter: T) -> bool:
        """Take a turn and return True, or add `waiter` to the queue and return False."""
        if self._free:
            self._free -= 1
            return True
        self._waiting.setdefault(user, deque()).append(waiter)
        return False

    def release(self) -> T | None:
        """Return a turn; return the waiter that has it now, or None if nobody waited."""
        if not self._waiting:
            self._free += 1
            return None
        user, queue = next(iter(self._waiting.items()))
        del self._waiting[user]
        waiter = queue.popleft()
        if queue:
            self._waiting[user] = queue
        return waiter

    def withdraw(self, user: str | None, waiter: T) -> None:
        """Remove a waiter from the queue."""
        queue = self._waiting[user]
        queue.remove(waiter)
        if not queue:
            del self._waiting[user]

    def clear(self) -> list[T]:
        """Remove and return all waiters."""
        waiting, self._waiting = self._waiting, {}
        return [waiter for queue in waiting.values() for waiter in queue]
