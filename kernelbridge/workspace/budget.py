"""How much may wait in one lane; pure."""

from __future__ import annotations

from kernelbridge.errors import LimitExceeded


class WaitingBudget:
    """Counts what waits, in requests and in characters; past either limit a request is refused, and nothing is lost."""

    def __init__(self, what: str, *, requests: int, characters: int) -> None:
        self._what = what
        self._requests = requests
        self._characters = characters
        self._waiting = 0
        self._size = 0

    def take(self, text: str) -> None:
        """Count a request; raises `LimitExceeded`. One that is alone may be as large as a frame."""
        if self._waiting >= self._requests:
            self._refuse(f"the limit is {self._requests}")
        if self._waiting and self._size + len(text) > self._characters:
            self._refuse(f"together they may be {self._characters} characters long")
        self._waiting += 1
        self._size += len(text)

    def release(self, text: str) -> None:
        """Count a request that waits no more."""
        self._waiting -= 1
        self._size -= len(text)

    def _refuse(self, limit: str) -> None:
        raise LimitExceeded(
            f"Too many {self._what} are waiting in this session", f"{limit}; wait for answers before sending more"
        )
