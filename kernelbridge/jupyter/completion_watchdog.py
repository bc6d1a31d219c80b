"""Ends the executions of a kernel that tells only half of their end.

An honest kernel tells both halves, reply and idle, within milliseconds. One that says that it is idle and does not
reply would keep its cell for ever: it has broken the protocol, unless an interrupt hit its own code. One that has
replied and never says that it is idle, because its output was more than its sockets take, is only not known to have
told everything: when nothing has come for some time, all of it is taken to be there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelbridge.jupyter.end_causes import INTERRUPTED_BEHIND
from kernelbridge.jupyter.execution import HALF_DONE, Execution, ExecutionTable, State

LOOK_SECONDS = 3.0
"""An execution that is the same at two looks is ended: three to six seconds after its first half."""
NO_REPLY = "it said that the cell was over, and gave no reply to it"

_Seen = tuple[Execution, State, int] | None


class CompletionWatchdog:
    """Watches the running execution of one table, from its first half on.

    `refuse` is called with what the kernel did wrong. `held` says whether output waits that has not been read yet.
    """

    def __init__(self, table: ExecutionTable, *, refuse: Callable[[str], None], held: Callable[[], bool]) -> None:
        self._table = table
        self._refuse = refuse
        self.held = held
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
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look, self._seen())

    def _seen(self) -> _Seen:
        execution = self._table.running
        if execution is None or execution.state not in HALF_DONE:
            return None
        # Output that comes may have its end behind it; a reply is behind nothing.
        return execution, execution.state, execution.moves if execution.state is State.REPLIED else 0

    def _look(self, before: _Seen) -> None:
        self._timer = None
        seen = self._seen()
        if seen is None:
            return
        if seen != before or self.held():
            self._begin()
        elif seen[1] is State.REPLIED:
            self._table.complete(seen[0])
        elif seen[0].cause is not None:
            self._table.end(seen[0], INTERRUPTED_BEHIND._replace(cause=seen[0].cause))
        else:
            self._refuse(NO_REPLY)
