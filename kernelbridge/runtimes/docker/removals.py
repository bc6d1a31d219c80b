"""Removals that the engine has not carried out yet, and that are retried until it has.

An engine that hangs or is stopped forgets what it was asked to remove.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.docker.tasks import Background

log = structlog.get_logger(__name__)

FIRST_DELAY = 0.5
"""Seconds until the first retry; doubles up to `LAST_DELAY`."""
LAST_DELAY = 4.0


class Removals:
    """The removals of one runtime that are still to be done."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._outstanding: set[str] = set()
        self._stopping = asyncio.Event()

    async def attempt(self, name: str, remove: Callable[[], Awaitable[None]]) -> bool:
        """Call `remove`; if it fails, retry it like `insist`. Return whether it succeeded at once."""
        try:
            await remove()
        except SandboxError as exc:
            self.insist(name, remove, reason=exc)
            return False
        return True

    def insist(self, name: str, remove: Callable[[], Awaitable[None]], *, reason: SandboxError) -> None:
        """Retry `remove` in the background until it does not raise `SandboxError`; one at a time for each `name`."""
        if name in self._outstanding:
            return
        log.warning("container_not_removed", container=name, reason=str(reason))
        if self._stopping.is_set():
            return
        self._outstanding.add(name)
        self._background.create(self._until_done(name, remove))

    def stop(self) -> None:
        """Stop retrying: the runtime is being closed and removes everything itself."""
        self._stopping.set()

    async def _until_done(self, name: str, remove: Callable[[], Awaitable[None]]) -> None:
        delay = FIRST_DELAY
        try:
            while not await self._stopped(delay):
                try:
                    await remove()
                except SandboxError:
                    delay = min(2 * delay, LAST_DELAY)
                else:
                    return
        finally:
            self._outstanding.discard(name)

    async def _stopped(self, seconds: float) -> bool:
        """Wait; return whether `stop` was called meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True
