"""When a session has been idle for long enough to be paused; pure."""

from __future__ import annotations


class IdleClock:
    """Counts from the last message, the last answer, or the last look at something that ran. Times in seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since = 0.0

    def touch(self, now: float) -> None:
        """Take note that somebody uses the session."""
        self._since = now

    def left(self, now: float, *, busy: bool) -> float:
        """Say how long it may still be idle: nothing or less if it has been for long enough."""
        if busy:
            self._since = now
        return self._since + self._limit - now
