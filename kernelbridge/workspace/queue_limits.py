"""How much may wait in one lane, and how long one run may take; pure."""

from __future__ import annotations

from kernelbridge.errors import BadRequest, LimitExceeded


class WaitingBudget:
    """Counts what waits, in requests and in characters; past either limit a request is refused, and nothing is lost."""

    def __init__(self, what: str, *, requests: int, characters: int) -> None:
        self._what = what
        self._requests = requests
        self._characters = characters
        self._waiting = 0
        self._size = 0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._waiting

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


def run_timeout(wanted: float | None, limit: float | None) -> float | None:
    """Give the seconds for one cell or command: what the request wants, at most the server's limit, its default too.

    Raises `BadRequest`.
    """
    if wanted is None or limit is None:
        return limit if wanted is None else wanted
    if wanted > limit:
        reason = f"expected at most {limit:g} seconds, which is the server's execution_timeout, and not {wanted:g}"
        raise BadRequest("The field 'timeout' is wrong", reason, field="timeout", code="invalid_field")
    return wanted
