"""How many bytes a session may move, and how fast; pure."""

from __future__ import annotations

PIECES = 2000.0
"""Reads a second of one session: each costs the server about as much as the bytes in it, however few these are."""


class Allowance:
    """The bytes of one session, in both directions together."""

    def __init__(self, rate: int | None, total: int | None) -> None:
        """`rate` is in bytes a second, `total` in bytes; None: without limit."""
        self._rate, self._total = rate, total
        self._free_at = 0.0
        """When, at the allowed rate, everything that was moved would have been moved."""
        self.moved = 0

    @property
    def used_up(self) -> bool:
        """Whether nothing more may be moved."""
        return self._total is not None and self.moved >= self._total

    def spend(self, count: int, now: float, *, reads: int = 1) -> float:
        """Count a read of so many bytes at `now`, in seconds; return how many seconds to wait until the next.

        What was not used in the last second may be used at once. `reads`: how many reads this counts as.
        """
        self.moved += count
        seconds = max(reads / PIECES, 0.0 if self._rate is None else count / self._rate)
        self._free_at = max(self._free_at, now - 1.0) + seconds
        return max(0.0, self._free_at - now)
