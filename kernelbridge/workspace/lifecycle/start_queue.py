"""Sandboxes start a few at a time: with more, each takes longer, and the engine is not faster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from kernelbridge.errors import RuntimeUnavailable, SandboxError, SessionClosed
from kernelbridge.workspace.lifecycle.admission import FairQueue


class StartQueue:
    """The starts of all sandboxes of a server."""

    def __init__(self, at_once: int) -> None:
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(at_once)

    @property
    def waiting(self) -> int:
        """How many starts wait."""
        return len(self._queue)

    @contextlib.asynccontextmanager
    async def turn(self, user: str | None, *, wanted: Callable[[], bool] = lambda: True) -> AsyncIterator[None]:
        """Wait for a turn and hold it; a cancelled call leaves the queue.

        Raises `SessionClosed` if `wanted` returns False when the turn comes, and `RuntimeUnavailable` if a start before
        this one found that the runtime does not answer.
        """
        await self._wait(user)
        try:
            if not wanted():
                raise SessionClosed(SandboxError.code)
            yield
        except RuntimeUnavailable as exc:
            # Each of them would wait as long as this one did, one after the other, and fail for the same reason.
            for waiting in self._queue.clear():
                waiting.set_exception(RuntimeUnavailable(exc.message, exc.reason))
            raise
        finally:
            self._pass_on()

    async def _wait(self, user: str | None) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._queue.acquire(user, turn):
            return
        # `wait`, because a future that is awaited directly is cancelled with this task, and its turn would be lost.
        try:
            await asyncio.wait({turn})
        except asyncio.CancelledError:
            if not turn.done():
                self._queue.withdraw(user, turn)
            elif turn.exception() is None:
                self._pass_on()
            raise
        turn.result()

    def _pass_on(self) -> None:
        following = self._queue.release()
        if following is not None:
            following.set_result(None)
