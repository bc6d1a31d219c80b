"""Reports that a session runs out of memory or of processes.

Memory: a process is killed that is neither the kernel nor the shell. The sandbox reports this, but not which process it
was, so each cell and command that ran at the time has the cause in its result. If the kernel or the shell is killed,
only its own end reports it. The end of a shell may be reported so late that the runtime connects no kill with it any
more. What was counted since its command began does so then.
Processes: while something runs, the sandbox is asked regularly whether it has room for more processes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from kernelbridge.errors import SandboxError
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace.command_outcome import CommandOutcome

LATE = 2.0
"""How long an out-of-memory event may arrive after the exit that it explains, in seconds."""
GRACE = 0.5
"""How long the result of a command that was killed waits for such an event, in seconds."""
OFTEN = 1.0
"""The shortest time between two `session_status` events, in seconds: a program may be restarted and killed again."""
NOTICE = "kernelbridge: the session's memory ran out, and a process in it was killed\n"
HINT = "The session's memory ran out, and a process in it was killed. Files in /dev/shm and /tmp count as memory."
_KILLED = 128 + 9

_LOOK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Mark:
    """The count of kills at the start of a cell or command."""

    sandbox: Sandbox | None
    kills: int


class MemoryWatch:
    """Watches whether the memory of one workspace runs out."""

    def __init__(self, tell_now: Callable[[], None]) -> None:
        """Watch no sandbox yet; `tell_now` is called at each event, whatever runs."""
        self._tell_now = tell_now
        self._busy: list[Callable[[], bool]] = []
        self._tell_later: Callable[[str], None] | None = None
        self._sandbox: Sandbox | None = None
        self._explained = 0
        self._counted = 0
        """Kills that the kernel or the agent has counted; a later report of the runtime adds nothing."""
        self._settled = self._told = float("-inf")
        self._event = asyncio.Event()

    def watch(self, sandbox: Sandbox) -> None:
        """Watch a new sandbox instead of the one before."""
        self._sandbox, self._explained, self._counted = sandbox, 0, 0
        sandbox.watch_memory(lambda: self._ran_out(sandbox))

    def serve(self, *, busy: Callable[[], bool], tell_later: Callable[[str], None] | None = None) -> None:
        """Add a lane, which is `busy` while something runs; an event while none is goes to `tell_later`."""
        self._busy.append(busy)
        self._tell_later = tell_later or self._tell_later

    def mark(self) -> Mark:
        """Return the present count, for `explained` or `over_command` after the run."""
        return Mark(self._sandbox, 0 if self._sandbox is None else max(self._sandbox.oom_kills(), self._counted))

    def explained(self, outcome: Outcome, mark: Mark) -> Outcome:
        """Return the outcome of a cell that began at `mark`, with the cause if the memory ran out meanwhile."""
        self._count(outcome.oom_kills, mark)
        if outcome.cause == "out_of_memory":
            self._settle()
        elif outcome.cause is None and outcome.state_preserved and self._since(mark):
            self._settle(whole=False)
            return replace(outcome, cause="out_of_memory")
        return outcome

    async def over_command(self, outcome: CommandOutcome, mark: Mark) -> CommandOutcome:
        """Return the outcome of a command, as for a cell; if it was killed, wait up to `GRACE` for an event."""
        self._count(outcome.oom_kills, mark)
        killed = outcome.exit_code == _KILLED
        if outcome.cause == "out_of_memory":
            self._settle()
        elif outcome.cause is None or (outcome.cause == "shell_exited" and killed):
            if outcome.cause is None and killed and not self._since(mark):  # a runtime has waited for its shell's event
                await self._wait_for_event()
            if self._since(mark):
                self._settle(whole=not outcome.state_preserved)
                return replace(outcome, cause="out_of_memory", hint=outcome.hint or HINT)
        return outcome

    def _count(self, kills: int, mark: Mark) -> None:
        """Note kills since `mark` that the sandbox itself has counted, before the runtime reports them."""
        if kills:
            self._counted = max(self._counted, mark.kills + kills)

    def _since(self, mark: Mark) -> bool:
        now = self.mark()
        return mark.sandbox is now.sandbox and now.kills > max(mark.kills, self._explained)

    def _settle(self, *, whole: bool = True) -> None:
        """Note that a result has reported the kills; with `whole`, they explain no other result."""
        self._settled = asyncio.get_running_loop().time()
        if whole:
            self._explained = self.mark().kills

    async def _wait_for_event(self) -> None:
        self._event.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), GRACE)

    def _ran_out(self, sandbox: Sandbox) -> None:
        if sandbox is not self._sandbox:
            return
        self._event.set()
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
    """Call `tell` each time that a sandbox becomes crowded while `busy`, and `found` at each look while it is crowded.

    Returns when the sandbox has ended.
    """
    ended = asyncio.ensure_future(sandbox.wait())
    told = False
    try:
        while True:
            # No event reports that a process could not be started; only the kernel's counter shows it.
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
