"""A time limit whose clock can be stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Deadline:
    """Calls `overdue` once its clock has run for `seconds`; with None, never.

    `noted` is called when the clock stops or starts again: with the seconds that are left, and with the monotonic time
    from which they count, or None while it is stopped.
    """

    def __init__(
        self,
        seconds: float | None,
        overdue: Callable[[], None],
        noted: Callable[[float, float | None], None] = lambda _left, _now: None,
    ) -> None:
        self._left = seconds
        self._overdue = overdue
        self._noted = noted
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._start()

    def stop(self) -> None:
        """Stop the clock, and keep the rest of the time. Idempotent."""
        self._halt()
        if self._left is not None:
            self._noted(self._left, None)

    def restart(self) -> None:
        """Let the clock run again, for the rest of the time. Idempotent."""
        self._halt()
        if self._left is not None:
            self._noted(self._left, time.monotonic())
        self._start()

    def cancel(self) -> None:
        """Remove the limit. Idempotent."""
        self._halt()
        self._left = None

    def _start(self) -> None:
        if self._left is not None:
            self._timer = self._loop.call_later(self._left, self._expire)

    def _halt(self) -> None:
        if self._timer is not None and self._left is not None:
            self._left = max(0.0, self._timer.when() - self._loop.time())
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = self._left = None
        self._overdue()
