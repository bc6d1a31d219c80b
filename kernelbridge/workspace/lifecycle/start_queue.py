"""Sandboxes start a few at a time: with more, each takes longer, and the engine is not faster.

Starts above that are not refused. They wait in a queue that serves users in turn: a user who starts twenty sessions
delays others by one start only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import chain

from kernelbridge.errors import LimitExceeded, RuntimeUnavailable, SandboxError, SessionClosed
from kernelbridge.metrics import Metrics
from kernelbridge.rates import Paces, Rates


class StartQueue:
    """The starts of all sandboxes of a server."""

    def __init__(self, at_once: int, metrics: Metrics | None = None, *, rate: float = 0.0) -> None:
        """`rate` is how many sandboxes a user may start in each second, in the long run; 0 is no limit."""
        self.metrics = metrics or Metrics()
        """Gets how long each phase of a start took."""
        self._rate = rate
        self._paces = Paces(Rates(requests=rate, size=0), time.monotonic)
        self._free = at_once
        self._waiting: dict[object, deque[asyncio.Future[None]]] = {}
        """By user, in the order of arrival. The first user is served next, and then moves to the end."""

    @property
    def waiting(self) -> int:
        """How many starts wait."""
        return sum(map(len, self._waiting.values()))

    @contextlib.asynccontextmanager
    async def turn(self, user: object, *, wanted: Callable[[], bool] = lambda: True) -> AsyncIterator[None]:
        """Wait for a turn and hold it; a cancelled call leaves the queue.

        Raises `SessionClosed` if `wanted` returns False when the turn comes, and `RuntimeUnavailable` if a start before
        this one found that the runtime does not answer. Raises `LimitExceeded` if the user starts too many.
        """
        if (wait := self._paces.user(user).wait(requests=1)) > 0:
            raise LimitExceeded(
                "Too many sandboxes were started for this user",
                f"the limit is {self._rate:g} in each second (--start-rate); try again in {math.ceil(wait)} s",
            )
        with self.metrics.timed("queue"):
            await self._wait(user)
        try:
            if not wanted():
                raise SessionClosed(SandboxError.code)
            yield
        except RuntimeUnavailable as exc:
            # Each of them would wait as long as this one did, one after the other, and fail for the same reason.
            waiting, self._waiting = self._waiting, {}
            for turn in chain.from_iterable(waiting.values()):
                turn.set_exception(RuntimeUnavailable(exc.message, exc.reason))
            raise
        finally:
            self._pass_on()

    async def _wait(self, user: object) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(turn)
        # `wait`, because a future that is awaited directly is cancelled with this task, and its turn would be lost.
        try:
            await asyncio.wait({turn})
        except asyncio.CancelledError:
            if not turn.done():
                self._waiting[user].remove(turn)
                if not self._waiting[user]:
                    del self._waiting[user]
            elif turn.exception() is None:
                self._pass_on()
            raise
        turn.result()

    def _pass_on(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        user, queue = next(iter(self._waiting.items()))
        del self._waiting[user]
        queue.popleft().set_result(None)
        if queue:
            self._waiting[user] = queue
