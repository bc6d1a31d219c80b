"""One workspace after another of the same session: the next one begins when the last one is gone.

While what makes sandboxes does not answer, the last one takes its time to go: longer than whoever waits for the next
may be kept waiting. They hear of that as soon as it is known.
"""

from __future__ import annotations

import asyncio
from typing import Any

from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.runtimes.contract import Sandbox


class Departure:
    """The end of one workspace."""

    def __init__(self) -> None:
        self._unanswered: asyncio.Future[RuntimeUnavailable] = asyncio.get_running_loop().create_future()

    async def destroy(self, started: asyncio.Task[Sandbox]) -> None:
        """Destroy the sandbox that was started, or is being; raises what keeps it from that."""
        await asyncio.wait({started})
        problem = started.exception()
        if problem is None:
            try:
                await started.result().destroy()
            except RuntimeUnavailable as exc:
                self._missed(exc)
                raise
        elif isinstance(problem, RuntimeUnavailable):  # which was told to whoever wanted it
            self._missed(problem)

    def _missed(self, problem: RuntimeUnavailable) -> None:
        if not self._unanswered.done():
            self._unanswered.set_result(problem)

    async def over(self, closing: asyncio.Task[None]) -> None:
        """Wait for the end of `closing`, whatever that comes to.

        Raises `RuntimeUnavailable` to who waits when it turns out that nobody can be asked to destroy the sandbox. Who
        comes later waits: perhaps somebody can by then.
        """
        waits: set[asyncio.Future[Any]] = {closing}
        if not self._unanswered.done():
            waits.add(self._unanswered)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not closing.done():
            problem = self._unanswered.result()
            raise RuntimeUnavailable(problem.message, problem.reason)
