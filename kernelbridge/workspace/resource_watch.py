"""What a session says when it runs out of memory or of processes.

Of memory: something is killed that is neither kernel nor shell. The sandbox says that it happened, not to which
process, so whatever ran meanwhile is told. What ends a kernel or a shell is told by that end, and by nothing else.
Of processes: the sandbox is asked now and then, while something runs that may wait for room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from kernelbridge.errors import SandboxError
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace.command_outcome import CommandOutcome

LATE = 2.0
"""Seconds for which news may come after that which it explains: they take different ways."""
GRACE = 0.5
"""Seconds that a command which looks as if it had been killed waits for news."""
OFTEN = 1.0
"""Seconds between two notices at least: what is started again is killed again."""
NOTICE = "kernelbridge: the session's memory ran out, and a process in it was killed\n"
HINT = "The session's memory ran out, and a process in it was killed. Files in /dev/shm and /tmp count as memory."
_KILLED = 128 + 9

_LOOK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Mark:
    """What was known when something began to run."""

    sandbox: Sandbox | None
    kills: int


class MemoryWatch:
    """Knows when the memory of one workspace has run out."""

    def __init__(self, tell_now: Callable[[], None]) -> None:
        """`tell_now` tells of it at once, whatever runs."""
        self._tell_now = tell_now
        self._busy: list[Callable[[], bool]] = []
        self._tell_later: Callable[[str], None] | None = None
        self._sandbox: Sandbox | None = None
        self._explained = 0
        self._counted = 0
        """Kills that the kernel itself has counted; the runtime may report them later, which is no news then."""
        self._settled = self._told = float("-inf")
        self._news = asyncio.Event()

    def watch(self, sandbox: Sandbox) -> None:
        """Watch another sandbox."""
        self._sandbox, self._explained, self._counted = sandbox, 0, 0
        sandbox.watch_memory(lambda: self._ran_out(sandbox))

    def serve(self, *, busy: Callable[[], bool], tell_later: Callable[[str], None] | None = None) -> None:
        """Know when something runs; what happens while nothing does goes into the next result by `tell_later`."""
        self._busy.append(busy)
        self._tell_later = tell_later or self._tell_later

    def mark(self) -> Mark:
        """Return what is known when something begins to run, for `explained` or `over_command`."""
        return Mark(self._sandbox, 0 if self._sandbox is None else max(self._sandbox.oom_kills(), self._counted))

    def explained(self, outcome: Outcome, mark: Mark) -> Outcome:
        """Return the outcome of a cell that began at `mark`, with the cause if the memory ran out meanwhile."""
        if outcome.oom_kills:
            self._counted = max(self._counted, mark.kills + outcome.oom_kills)
        if outcome.cause == "out_of_memory":
            self._settle()
        elif outcome.cause is None and outcome.state_preserved and (outcome.oom_kills or self._since(mark)):
            self._settle(whole=False)
            return replace(outcome, cause="out_of_memory")
        return outcome

    async def over_command(self, outcome: CommandOutcome, mark: Mark) -> CommandOutcome:
        """Give a command's outcome with the cause if it was this."""
        if outcome.cause == "out_of_memory":
            self._settle()
        elif outcome.cause is None:
            if outcome.exit_code == _KILLED and not self._since(mark):
                await self._wait_for_news()
            if self._since(mark):
                self._settle(whole=False)
                return replace(outcome, cause="out_of_memory", hint=outcome.hint or HINT)
        return outcome

    def _since(self, mark: Mark) -> bool:
        now = self.mark()
        return mark.sandbox is now.sandbox and now.kills > max(mark.kills, self._explained)

    def _settle(self, *, whole: bool = True) -> None:
        """Note that it was told; `whole`: and that nothing else has to do with it."""
        self._settled = asyncio.get_running_loop().time()
        if whole:
            self._explained = self.mark().kills

    async def _wait_for_news(self) -> None:
        self._news.clear()
        try:
            await asyncio.wait_for(self._news.wait(), GRACE)
        except TimeoutError:
            return

    def _ran_out(self, sandbox: Sandbox) -> None:
        if sandbox is not self._sandbox:
            return
        self._news.set()
        now = asyncio.get_running_loop().time()
        if now - self._told >= OFTEN:
            self._told = now
            self._tell_now()
        if sandbox.oom_kills() <= self._counted:
            return
        busy = any(busy() for busy in self._busy)
        if now - self._settled > LATE and not busy and self._tell_later is not None:
            self._settled = now
            self._tell_later(NOTICE)


async def watch_crowding(
    sandbox: Sandbox, busy: Callable[[], bool], tell: Callable[[], None], found: Callable[[], None]
) -> None:
    """Call `tell` each time that a sandbox has become crowded while `busy`, and `found` as long as it is.

    Returns when it has ended.
    """
    ended = asyncio.ensure_future(sandbox.wait())
    told = False
    try:
        while True:
            # What no process can be started for says so to nobody; the kernel counts it, and has to be asked.
            await asyncio.wait({ended}, timeout=_LOOK_SECONDS)
            if ended.done():
                return
            if not busy():
                continue
            try:
                crowded = await sandbox.crowded() is True
            except SandboxError:
                continue
            if crowded and not told:
                tell()
            told = crowded
            if crowded:
                found()
    finally:
        ended.cancel()
