"""Ends executions of which only the reply or only `idle` arrives.

A correct kernel sends both within milliseconds. A kernel that sends `idle` and no reply would keep its cell running for
ever: it has broken the protocol, unless an interrupt hit its own code. A kernel whose sockets were full may have
dropped `idle` after its reply: when nothing more has arrived for some time, the output is considered complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelbridge.jupyter.end_causes import REPLY_LOST
from kernelbridge.jupyter.execution import HALF_DONE, Execution, ExecutionTable, State

LOOK_SECONDS = 3.0
"""Seconds between two looks. An execution without progress between them is ended."""
NO_REPLY = "it reported that the cell had ended, but sent no reply"

_Seen = tuple[Execution, State, int] | None


class CompletionWatchdog:
    """Watches the running execution of one table, from its reply or its `idle` on.

    `on_fault` is called with what the kernel did wrong. `unread` returns whether output waits that is not read yet.
    """

    def __init__(self, table: ExecutionTable, *, on_fault: Callable[[str], None], unread: Callable[[], bool]) -> None:
        self._table = table
        self._on_fault = on_fault
        self.unread = unread
        self._timer: asyncio.TimerHandle | None = None
        table.on_half_done = self._begin

    def end(self) -> None:
        """Stop watching. Idempotent."""
        self._table.on_half_done = lambda: None
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        # Nearly always the execution is done before the first look, so one timer serves many cells.
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look, self._seen())

    def _seen(self) -> _Seen:
        execution = self._table.running
        if execution is None or execution.state not in HALF_DONE:
            return None
        # `idle` may follow the output that still arrives, but a reply does not wait for output.
        return execution, execution.state, execution.progress if execution.state is State.REPLIED else 0

    def _look(self, before: _Seen) -> None:
        self._timer = None
        seen = self._seen()
        if seen is None:
            return
        if seen != before or self.unread():
            self._begin()
        elif seen[1] is State.REPLIED:
            self._table.complete(seen[0])
        elif seen[0].cause is not None:
            self._table.end(seen[0], REPLY_LOST._replace(cause=seen[0].cause))
        else:
            self._on_fault(NO_REPLY)
