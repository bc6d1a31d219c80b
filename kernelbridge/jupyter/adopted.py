"""A kernel that an earlier server started, and to which this server connects with the same routing id.

    kernel = AdoptedKernel.adopt(process, identity, …)
    await kernel.settle(timeout)                  # if no cell runs: afterwards it is a kernel like any other
    kernel.take_over(msg_id, done, listener, …)   # if a cell runs, or has ended meanwhile

A reply that the kernel sends from now on arrives here. With our hooks, the kernel repeats what it sent while no server
was connected (`recall.py`). Without them that is lost, and the loss is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import structlog

from kernelbridge.aio.turns import turns
from kernelbridge.errors import KernelError
from kernelbridge.jupyter import end_causes, recall, wire
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.channels import MAX_MESSAGE
from kernelbridge.jupyter.connection import SocketDirectory
from kernelbridge.jupyter.events import Listener
from kernelbridge.jupyter.execution import FINAL, Execution
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.jupyter.intake import NO_OVERFLOWS, Overflows
from kernelbridge.jupyter.kernel import BEGIN_GRACE, Kernel
from kernelbridge.jupyter.startup import wait_heard
from kernelbridge.runtimes.contract import Process

log = structlog.get_logger(__name__)

_OVERHEAD = 300
"""Bytes of memory of an empty message, about."""
HELD = 16 << 20
"""Bytes of output that are held until the kernel has recalled what it sent before."""
MARK_TIMEOUT = 10.0
"""Seconds from the kernel's answer to the mark in its output."""
LATE_IDLE = 1.0
"""Seconds from the reply of a cell to the end of its output."""
PARTLY_LOST = "kernelbridge: the server was restarted while the cell ran; {what}\n"


class AdoptedKernel(Kernel):
    """A kernel that already runs, made by `adopt`."""

    _held: list[wire.Message] | None = None
    """Messages of iopub that wait until the kernel has recalled the earlier ones; None when they are not held."""
    _held_bytes = 0
    _marked: asyncio.Event
    """Set when the mark has arrived."""
    _caught_up: asyncio.Future[None]
    """Done when the earlier output of the running cell has been recalled, as far as possible."""
    _identity: KernelIdentity
    _missing: int | None = None
    """Bytes of the running cell's output that are lost; None if the number is unknown."""

    @classmethod
    def adopt(
        cls,
        process: Process,
        identity: KernelIdentity,
        *,
        sockets_host: Path,
        sockets_inside: str,
        on_late_output: Callable[[str], None],
        max_output: int,
        max_message: int = MAX_MESSAGE,
        overflows: Overflows = NO_OVERFLOWS,
    ) -> Self:
        """Connect to the kernel; for the arguments see `Kernel.start`. Raises `KernelError` if its sockets are gone.

        If the kernel has ended, that is no error: `died` says how.
        """
        directory = SocketDirectory(sockets_host, sockets_inside, identity.incarnation, key=identity.key)
        directory.reopen()
        try:
            kernel = cls(
                process,
                identity.spec,
                directory,
                max_output=max_output,
                max_message=max_message,
                late=on_late_output,
                overflows=overflows,
                answers_interrupts=identity.answers_interrupts,
            )
        except BaseException:
            directory.close()
            raise
        kernel._identity = identity
        kernel._marked, kernel._caught_up = asyncio.Event(), asyncio.get_running_loop().create_future()
        kernel._held = [] if identity.has_hooks else None
        kernel._watchdog.unread = lambda: kernel._held is not None or kernel._intake.unread
        kernel.has_hooks, kernel._ready = identity.has_hooks, True
        kernel.help.subshells = identity.subshells
        channels = kernel._connect(identity.routing_id.encode())
        if identity.has_hooks:
            channels.limit_output_queue()
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
        messages, since = self._split_held(recalled)
        if recalled.runs:
            messages, since = [*messages, *since], []
        await self._handle_all([*recall.since_idle(messages, recalled.cell), *since])
        await self._release_held()

    def take_over(
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
        execution = self._table.add(msg_id, done, listener, allow_stdin=asks)
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
                await self._catch_up(execution, await self._recall())
            self._caught_up.set_result(None)
            await self._find_reply(execution)
        except wire.BadFrame as exc:
            self._end_faulty(f"it sent {exc}")
        except KernelError:
            return  # the kernel has died, which ends the execution

    async def _recall(self) -> recall.Recalled:
        """Ask the kernel what it sent for its newest cell, and wait for the mark in its output. Raises `BadFrame`."""
        self._marked.clear()
        reply = await self._requests.ask("control", recall.REQUEST, {})
        if reply is None:
            raise KernelError("The kernel is dead", "it ended while it was taken over")
        recalled = recall.read(reply)
        if self._held is not None:
            with contextlib.suppress(TimeoutError):  # user code may have replaced the hook that sends it
                await asyncio.wait_for(self._marked.wait(), MARK_TIMEOUT)
        return recalled

    def _split_held(self, recalled: recall.Recalled) -> tuple[list[wire.Message], list[wire.Message]]:
        """Return all published messages before the mark, and the held ones after it. `_release_held` must follow."""
        held = self._held or []
        if self._held is not None:
            self._held, self._held_bytes = [], 0
        return recall.before_mark(held, recalled)

    async def _handle_all(self, messages: Sequence[wire.Message]) -> None:
        """Handle messages of iopub in slices. Raises `BadFrame`."""
        for message in messages:
            await turns().run(self._table.handling_iopub(message))

    async def _release_held(self) -> None:
        """Handle the held messages; later ones are not held any more. Raises `BadFrame`."""
        while self._held:
            held, self._held = self._held, []
            await self._handle_all(held)
        self._held = None

    async def _catch_up(self, execution: Execution, recalled: recall.Recalled) -> None:
        if recalled.cell != execution.msg_id:
            recalled = recall.Recalled()  # it was for an earlier cell: ours has not begun
        if self._held is None:
            self._handle_answers(recalled)
            return
        messages, since = self._split_held(recalled)
        self._missing = recalled.left_out
        # Only for the result: it is unknown which of these events the earlier server has sent to clients.
        listener, execution.listener = execution.listener, None
        try:
            await self._handle_all(messages)
        finally:
            execution.listener = listener
        self._handle_answers(recalled)
        await self._handle_all(since)
        await self._release_held()

    def _handle_answers(self, recalled: recall.Recalled) -> None:
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
            recalled = await self._recall()
            if recalled.cell == execution.msg_id:
                self._handle_answers(recalled)
        if execution.reply is None:
            lost = end_causes.NEVER_RAN if self._identity.has_hooks else end_causes.RESULT_LOST
            self._table.end(execution, lost)
        elif execution.state not in FINAL:
            await asyncio.wait({self.died}, timeout=LATE_IDLE)
            idle = wire.Message("status", "", execution.msg_id, b"{}", b'{"execution_state":"idle"}')
            self._table.on_iopub(idle)

    def with_losses(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a cell that was taken over, with a report of the output that is lost."""
        if self._missing == 0:
            return outcome
        what = "its output before that is lost"
        if self._missing is not None:
            what = f"the first {self._missing} bytes of its output are lost"
        left_out = outcome.truncated or {"bytes": 0, "kept": "tail", "at": 0}
        left_out = {**left_out, "bytes": left_out["bytes"] + (self._missing or 0)}
        return replace(outcome, truncated=left_out, late_output=PARTLY_LOST.format(what=what) + outcome.late_output)

    def _disconnect(self) -> None:
        held, self._held = self._held or [], None
        super()._disconnect()
        if not self._closing and self._fault is None:  # the kernel has died before it could recall the rest
            for message in held:
                with contextlib.suppress(wire.BadFrame):
                    self._table.on_iopub(message)

    def _handle(self, channel: str, message: wire.Message) -> Generator[None, None, None]:
        if channel != "iopub" or self._held is None or self._fault is not None:
            yield from super()._handle(channel, message)
            return
        self._iopub_seen.set()
        self._held.append(message)
        self._held_bytes += _weight(message)
        if message.msg_type == recall.MARK:
            self._marked.set()
        if self._held_bytes > HELD:
            log.warning("kernel_recall_abandoned", why="the kernel published more than is held meanwhile")
            held, self._held = self._held, None
            self._marked.set()
            for each in held:
                yield from super()._handle(channel, each)


def _weight(message: wire.Message) -> int:
    """Return about how many bytes of memory a held message takes."""
    parts = (message.content, message.metadata, message.msg_type, message.msg_id, message.parent_id)
    return _OVERHEAD + sum(map(len, parts))
