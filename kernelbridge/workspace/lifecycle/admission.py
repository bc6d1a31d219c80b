"""Who may have another session, and who starts next; pure.

What is full is refused with `LimitExceeded`, which the same request may overcome later. Starts are not refused: they
wait, users in turn, so that one who starts twenty sessions keeps nobody else waiting for more than one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from kernelbridge.errors import LimitExceeded

T = TypeVar("T")
SUCCESSORS = 100
"""Times that a session may be opened anew, and closed again, before its first end is over."""


class _Key(Protocol):
    @property
    def principal(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions may be open at a time."""

    per_user: int
    in_all: int

    def check(self, key: _Key, there: Collection[_Key]) -> None:
        """Raise `LimitExceeded` if the session `key` cannot be there beside those that are."""
        if key in there:
            return
        if sum(1 for other in there if other.principal == key.principal) >= self.per_user:
            raise LimitExceeded(
                "Too many sessions are open for this user",
                f"the limit is {self.per_user}; close one with close_session, or wait until an unused one has ended",
            )
        if len(there) >= self.in_all:
            raise LimitExceeded(
                "Too many sessions are open on this server",
                f"the limit is {self.in_all}; try again when others have ended, or ask its operator for more",
            )


def check_successors(count: int) -> None:
    """Raise `LimitExceeded` if a session has been opened anew too often while it is being closed."""
    if count >= SUCCESSORS:
        raise LimitExceeded(
            "The session has been opened and closed too often while it is being closed",
            "send it again when close_session has been answered",
        )


class Rota(Generic[T]):
    """So many turns at a time; who waits gets the next one, users in turn, each user's own first come first served."""

    def __init__(self, turns: int) -> None:
        self._free = turns
        self._waiting: dict[str | None, deque[T]] = {}
        """The first user is the next; one who was served goes to the end."""

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def ask(self, user: str | None, who: T) -> bool:
        """Take a turn, or wait for one; say whether it was taken."""
        if self._free:
            self._free -= 1
            return True
        self._waiting.setdefault(user, deque()).append(who)
        return False

    def done(self) -> T | None:
        """Give a turn back; say who has it now, if somebody waited."""
        if not self._waiting:
            self._free += 1
            return None
        user, queue = next(iter(self._waiting.items()))
        del self._waiting[user]
        who = queue.popleft()
        if queue:
            self._waiting[user] = queue
        return who

    def withdraw(self, user: str | None, who: T) -> None:
        """Wait no more."""
        queue = self._waiting[user]
        queue.remove(who)
        if not queue:
            del self._waiting[user]

    def dismiss(self) -> list[T]:
        """Let nobody wait any more; give those who did."""
        waiting, self._waiting = self._waiting, {}
        return [who for queue in waiting.values() for who in queue]
