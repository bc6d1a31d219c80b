"""What all sessions of a server have together, and how much of it one user may take; pure."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable


class Shares:
    """Places that all users share.

    A user may have as many as would be free afterwards, and one in any case while there is one. So one user gets half
    of all, two get a third each, and there is always something left for the next.
    """

    def __init__(self, total: int = sys.maxsize) -> None:
        """Have `total` places."""
        self.free = total
        self._taken: Counter[Hashable] = Counter()

    def take(self, user: Hashable) -> bool:
        """Take a place for a user; return False if there is none for them."""
        if not self.free or (self._taken[user] and self._taken[user] >= self.free):
            return False
        self.free -= 1
        self._taken[user] += 1
        return True

    def give_back(self, user: Hashable) -> None:
        """Give back a place that `take` has taken."""
        self.free += 1
        self._taken[user] -= 1
        if not self._taken[user]:
            del self._taken[user]
