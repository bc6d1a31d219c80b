"""A time limit whose clock can be stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls `overdue` once its clock has run for `seconds`; without a limit, never."""

    def __init__(self, seconds: float | None, overdue: Callable[[], None]) -> None:
        self._left = seconds
        self._overdue = overdue
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.go_on()

    def stop(self) -> None:
        """Stop the clock; what is left of the time is kept. Idempotent."""
        if self._timer is not None and self._left is not None:
            self._left = max(0.0, self._timer.when() - self._loop.time())
            self._timer.cancel()
            self._timer = None

    def go_on(self) -> None:
        """Let the clock run again. Idempotent."""
        if self._timer is None and self._left is not None:
            self._timer = self._loop.call_later(self._left, self._expire)

    def cancel(self) -> None:
        """Take the limit back. Idempotent."""
        self.stop()
        self._left = None

    def _expire(self) -> None:
        self._timer = self._left = None
        self._overdue()
