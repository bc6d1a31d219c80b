"""How many requests may wait in one lane, and how long one run may take; pure."""

from __future__ import annotations

from kernelbridge.errors import BadRequest, LimitExceeded


class WaitingBudget:
    """Counts waiting requests and their characters. Above either limit, a request is refused."""

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
        """Add a request; raises `LimitExceeded`. A single request may have any size."""
        if self._waiting >= self._requests:
            self._refuse(f"the limit is {self._requests}")
        if self._waiting and self._size + len(text) > self._characters:
            self._refuse(f"together they may have {self._characters} characters")
        self._waiting += 1
        self._size += len(text)

    def release(self, text: str) -> None:
        """Remove a request that does not wait any more."""
        self._waiting -= 1
        self._size -= len(text)

    def _refuse(self, limit: str) -> None:
        raise LimitExceeded(
            f"Too many {self._what} are waiting in this session", f"{limit}; wait for answers before sending more"
        )


def run_timeout(wanted: float | None, limit: float | None) -> float | None:
    """Return the timeout of one cell or command in seconds, None for no limit: `wanted`, or the server's limit.

    Raises `BadRequest` if `wanted` is larger than the limit.
    """
    if wanted is None or limit is None:
        return limit if wanted is None else wanted
    if wanted > limit:
        reason = f"expected at most {limit:g} seconds, the server's execution_timeout, and not {wanted:g}"
        raise BadRequest("The field 'timeout' is wrong", reason, field="timeout", code="invalid_field")
    return wanted
