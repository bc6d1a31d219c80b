"""Sandboxes are made a few at a time: more would only take longer, and the engine answers no sooner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from kernelbridge.errors import RuntimeUnavailable, SandboxError, SessionClosed
from kernelbridge.workspace.lifecycle.admission import Rota


class Starts:
    """The turns of all workspaces of a server."""

    def __init__(self, at_once: int) -> None:
        self._rota: Rota[asyncio.Future[None]] = Rota(at_once)

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return len(self._rota)

    @contextlib.asynccontextmanager
    async def turn(self, user: str | None, *, wanted: Callable[[], bool] = lambda: True) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises `RuntimeUnavailable` when those before found that nothing answers.

        Raises `SessionClosed` if it is not `wanted` any more when it comes: nothing is made then to be removed at once.
        """
        await self._wait(user)
        try:
            if not wanted():
                raise SessionClosed(SandboxError.code)
            yield
        except RuntimeUnavailable as exc:
            # Each would wait as long as this one did, one after the other, only to hear the same.
            for waiting in self._rota.dismiss():
                waiting.set_exception(RuntimeUnavailable(exc.message, exc.reason))
            raise
        finally:
            self._pass_on()

    async def _wait(self, user: str | None) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._rota.ask(user, turn):
            return
        # Waited for and not awaited: then it says what became of it, also to one who is cancelled just then.
        try:
            await asyncio.wait({turn})
        except asyncio.CancelledError:
            if not turn.done():
                self._rota.withdraw(user, turn)
            elif turn.exception() is None:
                self._pass_on()
            raise
        turn.result()

    def _pass_on(self) -> None:
        following = self._rota.done()
        if following is not None:
            following.set_result(None)
