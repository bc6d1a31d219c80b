"""How often an address may cause something that costs: an answer to a failed login, a line in the log; pure.

A valid credential is accepted whatever the count is: clients behind one address do not lock each other out. So this
does not limit guesses, of which 256 random bits allow any number. It bounds what failures cost: beyond it they get 429,
and the log has their number instead of a line for each.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


@dataclass(frozen=True, slots=True)
class Rate:
    """So many failures at once, and then so many a second."""

    burst: float
    per_second: float

    def wait(self, left: float) -> float:
        """Return the seconds until one more is within the rate."""
        return max(0.0, 1.0 - left) / self.per_second


PER_ADDRESS = Rate(20, 1 / 3)
IN_ALL = Rate(200, 20)
ADDRESSES = 4096
"""Addresses that are counted by themselves; the one that failed longest ago is forgotten first."""


class Throttle:
    """Counts failures of each address, and of all together. Times are seconds of a clock that never goes back."""

    def __init__(self, per_address: Rate = PER_ADDRESS, in_all: Rate = IN_ALL, *, addresses: int = ADDRESSES) -> None:
        self._rates = (per_address, in_all)
        self._addresses = addresses
        self._all = _Bucket(in_all.burst, 0.0)
        self._each: OrderedDict[str, _Bucket] = OrderedDict()
        self._suppressed = 0

    def failed(self, address: str, now: float) -> float:
        """Count a failure. Returns the seconds after which the client may try again, 0 while it is within the rates."""
        per_address, in_all = self._rates
        bucket = self._each.setdefault(address, _Bucket(per_address.burst, now))
        self._each.move_to_end(address)
        if len(self._each) > self._addresses:
            self._each.popitem(last=False)
        for one, rate in ((bucket, per_address), (self._all, in_all)):
            one.left = min(rate.burst, one.left + (now - one.at) * rate.per_second)
            one.at = now
        if bucket.left < 1 or self._all.left < 1:
            self._suppressed += 1
            return max(per_address.wait(bucket.left), in_all.wait(self._all.left))
        bucket.left -= 1
        self._all.left -= 1
        return 0.0

    def take_suppressed(self) -> int:
        """Return how many failures were beyond the rates since the last call."""
        count, self._suppressed = self._suppressed, 0
        return count
