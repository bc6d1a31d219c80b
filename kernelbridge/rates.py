"""Token buckets: how fast a user and a connection may send, and how many refusals are noted.

Pure: the caller says what time it is, and does the waiting.
With `take`, a bucket gives what is asked for, and then says how long to wait. So a client that sends too much is slowed
down and loses nothing, and its next message is read later.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

_SECONDS = 10.0
"""The size of a bucket, in seconds of its rate: a short burst above the rate does not wait."""
_SHARE = 0.5
"""The part of its user's rates that one connection may have."""
_SWEEP = 1000
"""Users after which those who have not sent anything for long are forgotten."""


class Bucket:
    """One budget that fills by itself."""

    def __init__(self, per_second: float, now: float) -> None:
        """Start full; 0 per second is no limit."""
        self._rate = per_second
        self._level = self._most = per_second * _SECONDS
        self._at = now

    def take(self, amount: float, now: float) -> float:
        """Take `amount`; return the seconds until nothing is owed any more, 0 if there was enough."""
        if not self._rate:
            return 0.0
        self._fill(now)
        self._level -= amount
        return max(0.0, -self._level / self._rate)

    def try_take(self, amount: float, now: float) -> bool:
        """Take `amount` if there is enough; return whether there was."""
        self._fill(now)
        if self._rate and self._level < amount:
            return False
        self._level -= amount
        return True

    def full(self, now: float) -> bool:
        """Whether it has not been used for so long that it could be a new one."""
        self._fill(now)
        return self._level >= self._most

    def _fill(self, now: float) -> None:
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now


@dataclass(frozen=True, slots=True)
class Rates:
    """What one user may send, in each second; 0 is no limit."""

    requests: float
    size: float
    """Bytes."""


class Pace:
    """How fast one user, or one connection, sends."""

    def __init__(self, rates: Rates, clock: Callable[[], float], whole: Pace | None = None) -> None:
        """`clock` returns the time in seconds. With `whole`, what is sent counts there, too."""
        self._clock = clock
        self._requests = Bucket(rates.requests, clock())
        self._size = Bucket(rates.size, clock())
        self._whole = whole

    def wait(self, *, requests: int = 0, size: int = 0) -> float:
        """Count what has arrived; return the seconds to wait before more is read."""
        now = self._clock()
        wait = max(self._requests.take(requests, now), self._size.take(size, now))
        return wait if self._whole is None else max(wait, self._whole.wait(requests=requests, size=size))

    @property
    def resting(self) -> bool:
        """Whether nothing was sent for long."""
        now = self._clock()
        return self._requests.full(now) and self._size.full(now)


class Paces:
    """The paces of all users of a server."""

    def __init__(self, rates: Rates, clock: Callable[[], float]) -> None:
        """`clock` returns the time in seconds."""
        self._rates = rates
        self._part = Rates(rates.requests * _SHARE, rates.size * _SHARE)
        self._clock = clock
        self._users: dict[Hashable, Pace] = {}

    def user(self, user: Hashable) -> Pace:
        """Return the pace of a user."""
        if len(self._users) >= _SWEEP:
            # A new pace is the same as one that rests; and a connection keeps that of its user.
            self._users = {user: pace for user, pace in self._users.items() if not pace.resting}
        pace = self._users.get(user)
        if pace is None:
            pace = self._users[user] = Pace(self._rates, self._clock)
        return pace

    def connection(self, user: Hashable) -> Pace:
        """Return the pace of a new connection of a user."""
        return Pace(self._part, self._clock, self.user(user))
