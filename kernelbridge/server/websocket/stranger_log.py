"""Warnings that clients cause before they have proved who they are: few, and short.

Whoever can connect could otherwise fill the disk with them. The metrics count every refusal nevertheless.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from kernelbridge.identity.proxied import bucket_of
from kernelbridge.identity.throttle import Rate, Throttle

log = structlog.get_logger(__name__)

PER_ADDRESS = Rate(100, 1)
IN_ALL = Rate(200, 20)
LONGEST = 256
"""Characters of a text in such a line."""


class StrangerLog:
    """Writes so many lines for each address, and for all together. The next line counts those that were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._throttle = Throttle(PER_ADDRESS, IN_ALL)
        self._clock = clock

    def warning(self, event: str, address: str, **fields: object) -> None:
        """Log a line that a client at `address` has caused, unless there were too many."""
        if self._throttle.failed(bucket_of(address), self._clock()):
            return
        if count := self._throttle.take_suppressed():
            fields["left_out"] = count
        log.warning(event, address=address, **{name: _short(value) for name, value in fields.items()})


def _short(value: object) -> object:
    return f"{value[:LONGEST]}…" if isinstance(value, str) and len(value) > LONGEST else value
