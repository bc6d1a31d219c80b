"""The WebSockets that have not logged in yet: how many may wait, and which one makes room for another; pure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from kernelbridge.errors import KernelBridgeError, Unauthorized

WAITING = 64
"""WebSockets that may be in that state at a time."""
SILENT = 1.0
"""Seconds after which such a WebSocket makes room for another one of its address. An honest client takes less."""

End = Callable[[KernelBridgeError], None]
"""Ends a connection, or what else a login is for, and sends the client the error."""


class WaitingLogins:
    """The WebSockets that have not logged in yet: at most `WAITING`, and no addresses keep another one out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds, and never goes back."""
        self._clock = clock
        self._ends: dict[str, dict[object, tuple[float, End]]] = {}
        """When each began to wait, in seconds of a clock, and what ends it: by address, the oldest first."""

    @contextlib.contextmanager
    def of(self, address: str, end: End) -> Iterator[bool]:
        """Hold a place while the context is open; yields False if there is none. `end` is called if it is lost."""
        if not self._make_room(address):
            yield False
            return
        token = object()
        self._ends.setdefault(address, {})[token] = (self._clock(), end)
        try:
            yield True
        finally:
            self._forget(address, token)

    def end_all(self, reason: str) -> None:
        """End all of them."""
        for address, ends in list(self._ends.items()):
            for token in list(ends):
                self._end(address, token, reason)

    def _make_room(self, address: str) -> bool:
        if sum(map(len, self._ends.values())) < WAITING:
            return True
        greedy = max(self._ends, key=lambda one: len(self._ends[one]))
        # An address without a place always gets one: otherwise as many addresses as there are places keep it out.
        if address in self._ends and len(self._ends[greedy]) <= len(self._ends[address]) + 1:
            greedy = address  # others may come from the same one, such as a proxy's: what is silent makes room
            if self._clock() - next(iter(self._ends[address].values()))[0] < SILENT:
                return False
        self._end(greedy, next(iter(self._ends[greedy])), "too many connections wait for a login; connect again")
        return True

    def _end(self, address: str, token: object, reason: str) -> None:
        _, end = self._ends[address][token]
        self._forget(address, token)
        end(Unauthorized("You are not logged in", reason))

    def _forget(self, address: str, token: object) -> None:
        ends = self._ends.get(address, {})
        ends.pop(token, None)
        if not ends:
            self._ends.pop(address, None)
