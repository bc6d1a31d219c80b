"""Sees to the executions of a kernel that tells only half of their end.

An honest kernel tells both halves, reply and idle, within milliseconds. One that says that it is idle and does not
reply would keep its cell for ever; it has broken the protocol. One that has replied and never says that it is idle is
only not known to have told all its output: when none has come for some time, all of it is taken to be there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelbridge.jupyter.execution import HALF_DONE, Execution, ExecutionTable, State

LOOK_SECONDS = 1.5
_LOOKS = 3
"""Who is the same at so many looks, the first of which comes within `LOOK_SECONDS` of the first half, is seen to: after
three to four and a half seconds."""
NO_REPLY = "it said that the cell was over, and gave no reply to it"


class CompletionWatchdog:
    """Watches the running execution of one table, from its first half on.

    `refuse` is called with what the kernel did wrong. `held` says whether output waits that has not been read yet.
    """

    def __init__(self, table: ExecutionTable, *, refuse: Callable[[str], None], held: Callable[[], bool]) -> None:
        self._table = table
        self._refuse = refuse
        self.held = held
        self._seen: tuple[Execution, State, int] | None = None
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        table.on_half = self._begin

    def end(self) -> None:
        """Look no more. Idempotent."""
        self._table.on_half = lambda: None
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        # Nearly always the other half is there before the first look: so this is one timer for many cells.
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        execution = self._table.running
        if execution is None or execution.state not in HALF_DONE:
            self._seen = None
            return
        # Output that comes, or waits here to be read, may have its end behind it; a reply is behind nothing.
        seen = execution, execution.state, execution.moves if execution.state is State.REPLIED else 0
        self._looks = self._looks + 1 if seen == self._seen and not self.held() else 1
        self._seen = seen
        if self._looks < _LOOKS:
            self._begin()
        elif execution.state is State.REPLIED:
            self._table.complete(execution)
        else:
            self._refuse(NO_REPLY)
