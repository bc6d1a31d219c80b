"""A kernel that an earlier server started, and to which this server connects with the same routing id.

    kernel = AdoptedKernel.adopt(sandbox, process, identity, …)
    await kernel.settle(timeout)                  # if no cell runs: afterwards it is a kernel like any other
    kernel.adopt_cell(msg_id, done, listener, …)   # if a cell runs, or has ended meanwhile

A reply that the kernel sends from now on arrives here. With our hooks, the kernel repeats what it sent while no server
was connected (`recall.py`). Without them that is lost, and the loss is reported.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, Self

from kernelbridge.errors import KernelError
from kernelbridge.jupyter import end_causes, recall, wire
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.channels import MAX_MESSAGE
from kernelbridge.jupyter.connection import KernelSockets
from kernelbridge.jupyter.events import Asked, CellEvent, Listener
from kernelbridge.jupyter.execution import FINAL, Execution
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.jupyter.intake import NO_SPILLS, Spills
from kernelbridge.jupyter.kernel import BEGIN_GRACE, Kernel
from kernelbridge.jupyter.startup import wait_heard
from kernelbridge.runtimes.contract import Process, Sandbox

REPLAY_TIMEOUT = 10.0
"""Seconds from the kernel's answer to the end of what it repeats."""
LATE_IDLE = 1.0
"""Seconds from the reply of a cell to the end of its output."""
PARTLY_LOST = "kernelbridge: the server was restarted while the cell ran; {what}\n"


class AdoptedKernel(Kernel):
    """A kernel that already runs, made by `adopt`."""

    _identity: KernelIdentity
    _replay: recall.Replay
    _replayed: asyncio.Future[None]
    """Done when the kernel has repeated its messages."""
    _caught_up: asyncio.Future[None]
    """Done when the earlier output of the running cell is known, as far as possible."""

    @classmethod
    def adopt(
        cls,
        sandbox: Sandbox,
        process: Process,
        identity: KernelIdentity,
        *,
        on_late_output: Callable[[str], None],
        max_output: int,
        max_message: int = MAX_MESSAGE,
        spills: Spills = NO_SPILLS,
    ) -> Self:
        """Connect to the kernel; for the arguments see `Kernel.start`. Raises `KernelError` if its sockets are gone.

        If the kernel has ended, that is no error: `died` says how.
        """
        sockets = KernelSockets.reopen(sandbox, identity.incarnation, identity.key)
        try:
            kernel = cls(
                process,
                identity.spec,
                sockets,
                max_output=max_output,
                max_message=max_message,
                late=on_late_output,
                spills=spills,
                answers_interrupts=identity.answers_interrupts,
            )
        except BaseException:
            sockets.release()
            raise
        kernel._identity = identity
        loop = asyncio.get_running_loop()
        kernel._replay, kernel._replayed, kernel._caught_up = (
            recall.Replay(),
            loop.create_future(),
            loop.create_future(),
        )
        if not identity.has_hooks:
            kernel._replay.abandon()
        kernel._watchdog.unread = lambda: not kernel._replay.over or kernel._intake.unread
        kernel.has_hooks, kernel._ready = identity.has_hooks, True
        kernel.help.subshells = identity.subshells
        kernel._routing_id = identity.routing_id.encode()
        kernel._connect()
        return kernel

    async def settle(self, timeout: float) -> None:  # noqa: ASYNC109 - its error has a text of its own
        """Wait until the kernel answers, for `timeout` seconds. Raises `KernelError`; then the caller closes it.

        Text that it wrote while no server was connected is late output. If cancelled, no task is left behind.
        """
        work = self._spawn(self._settle())
        try:
            await asyncio.wait({work, self.died}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            failure = work.exception() if work.done() else KernelError("", self._no_answer(timeout))
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)  # its errors from here on do not matter
        if isinstance(failure, KernelError):
            raise KernelError("The kernel could not be taken over", failure.reason) from failure
        if isinstance(failure, wire.BadFrame):
            raise KernelError("The kernel could not be taken over", f"it sent {failure}") from failure
        if failure is not None:
            raise failure

    def _no_answer(self, timeout: float) -> str:
        return f"it ended: {self.died.result()}" if self.died.done() else f"no answer within {timeout:g} s"

    async def _settle(self) -> None:
        if not self._identity.has_hooks:
            await wait_heard(self._requests, self._iopub_seen)
            return
        # On control, because callbacks that a cell has left in the event loop may block shell for long.
        await wait_heard(self._requests, self._iopub_seen, on_control=True)
        recalled = await self._recall()
        if recalled.runs:  # its client has an answer: the cell was being ended when the earlier server ended
            await wait_heard(self._requests, self._iopub_seen)

    def adopt_cell(
        self,
        msg_id: str,
        done: Callable[[Outcome], None],
        listener: Listener | None,
        *,
        asks: bool,
        began: float,
    ) -> Execution:
        """Follow a cell that an earlier server has sent, until its end; see `Kernel.submit`.

        `asks` says whether it may ask for input. `began` is when it was sent, in monotonic seconds. `listener` gets the
        events from now on. `with_losses` adds to the outcome what of it is lost.
        """
        self._replay.cell = msg_id

        def listen(event: CellEvent) -> None:
            # It is unknown which repeated events the earlier server has sent to clients: those are only for the result.
            if listener is not None and (isinstance(event, Asked) or not self._replay.repeats):
                listener(event)

        execution = self._table.add(msg_id, done, listener and listen, allow_stdin=asks)
        execution.counted_from = min(execution.counted_from, began)
        execution.start_reported = True  # by the server that sent it
        if began + BEGIN_GRACE < time.monotonic():
            execution.started_at = began  # an interrupt need not wait until the kernel reports its start
        if self.died.done():
            self._table.end(execution, end_causes.process_ended(self.died.result()))
        else:
            self._spawn(self._follow(execution))
        return execution

    async def catch_up(self, timeout: float) -> None:  # noqa: ASYNC109 - a timeout is no error here
        """Wait at most `timeout` seconds until the earlier output of the running cell, if any, has been recalled."""
        if len(self._table):
            ends: set[asyncio.Future[Any]] = {self._caught_up, self.died}
            await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    # -- what was sent before -----------------------------------------------------

    async def _follow(self, execution: Execution) -> None:
        try:
            if self._identity.has_hooks:
                await wait_heard(self._requests, self._iopub_seen, on_control=True)
                self._handle_answers(execution, await self._recall())
            self._caught_up.set_result(None)
            await self._find_reply(execution)
        except wire.BadFrame as exc:
            self._end_faulty(f"it sent {exc}")
        except KernelError:
            return  # the kernel has died, which ends the execution

    async def _recall(self, *, replay: bool = True) -> recall.Recalled:
        """Ask the kernel for the answers of its newest cell, and let it repeat its messages. Raises `BadFrame`."""
        reply = await self._requests.ask("control", recall.REQUEST, {"replay": replay})
        if reply is None:
            raise KernelError("The kernel is dead", "it ended while it was taken over")
        recalled = recall.read(reply)
        if replay:
            ends: set[asyncio.Future[Any]] = {self._replayed, self.died}
            await asyncio.wait(ends, timeout=REPLAY_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if not self._replay.over:
                self._replay.abandon()  # user code may have replaced the hook
        return recalled

    def _handle_answers(self, execution: Execution, recalled: recall.Recalled) -> None:
        if recalled.cell != execution.msg_id:
            return  # they are those of an earlier cell: ours has not begun
        if (reply := recalled.reply_message()) is not None:
            self._table.on_shell(reply)
        if (question := recalled.question()) is not None:
            self._table.on_stdin(question)

    async def _find_reply(self, execution: Execution) -> None:
        """End the execution if its reply or its `idle` was sent while no server was connected."""
        if execution.state in FINAL:
            return
        # The kernel answers this when the cell has ended, and after the cell's reply.
        await self._requests.ask("shell", "kernel_info_request", {})
        if self.died.done() or execution.state in FINAL:
            return
        if execution.reply is None and self._identity.has_hooks:
            self._handle_answers(execution, await self._recall(replay=False))
        if execution.reply is None:
            lost = end_causes.NEVER_RAN if self._identity.has_hooks else end_causes.RESULT_LOST
            self._table.end(execution, lost)
        elif execution.state not in FINAL:
            await asyncio.wait({self.died}, timeout=LATE_IDLE)
            idle = wire.Message("status", "", execution.msg_id, b"{}", b'{"execution_state":"idle"}')
            self._table.on_iopub(idle)

    def with_losses(self, outcome: Outcome) -> Outcome:
        """Return the outcome of an adopted cell, with a report of the output that is lost."""
        missing = self._replay.left_out
        if missing == 0:
            return outcome
        what = "its output before that is lost"
        if missing is not None:
            what = f"the first {missing} bytes of its output are lost"
        left_out = outcome.truncated or {"bytes": 0, "kept": "tail", "at": 0}
        left_out = {**left_out, "bytes": left_out["bytes"] + (missing or 0)}
        return replace(outcome, truncated=left_out, late_output=PARTLY_LOST.format(what=what) + outcome.late_output)

    def _handle(self, channel: str, message: wire.Message) -> Generator[None, None, None]:
        if channel == "iopub" and self._fault is None:
            self._iopub_seen.set()
            counts = self._replay.counts(message)
            if self._replay.over and not self._replayed.done():
                self._replayed.set_result(None)
            if not counts:
                return
        yield from super()._handle(channel, message)
