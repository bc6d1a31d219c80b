"""A kernel that an earlier server started, which another one speaks to under the same routing id.

    kernel = AdoptedKernel.adopt(process, identity, …)
    await kernel.settle(timeout)                  # nothing runs in it: afterwards it is a kernel like any other
    kernel.take_over(msg_id, done, listener, …)   # or: a cell runs in it, or has ended meanwhile

A reply that the kernel sends while another server is there reaches that one. What it sent while none was, it recalls
(`recall.py`), if our hooks are in it; otherwise that is lost, and said to be.
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
from kernelbridge.jupyter.startup import until_heard
from kernelbridge.runtimes.contract import Process

log = structlog.get_logger(__name__)

_OVERHEAD = 300
"""Bytes that a message of nothing takes, about."""
HELD = 16 << 20
"""Bytes of output that may come before the kernel has recalled what came before them."""
MARK_TIMEOUT = 10.0
"""Seconds for the mark among its output, once it has answered."""
LATE_IDLE = 1.0
"""Seconds for the end of the output of a cell whose reply has come."""
PARTLY_LOST = "kernelbridge: the server was restarted while the cell ran; {what}\n"


class AdoptedKernel(Kernel):
    """A kernel that runs already. Made by `adopt`."""

    _held: list[wire.Message] | None = None
    """What it published before it has recalled the rest; None when it is handed on at once."""
    _held_bytes = 0
    _marked: asyncio.Event
    _caught_up: asyncio.Future[None]
    """Set when what the running cell wrote before is known, as far as it can be."""
    _identity: KernelIdentity
    _missing: int | None = None
    """Bytes of the running cell's output that are lost; None: all that it wrote before, or nobody knows how much."""

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
        """Connect to it; for the arguments see `Kernel.start`. Raises `KernelError` if its sockets are gone.

        One that has ended is no error: `died` says how.
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
        kernel._held = [] if identity.recalls else None
        kernel._watchdog.held = lambda: kernel._held is not None or kernel._intake.held
        kernel.recalls, kernel._ready = identity.recalls, True
        kernel.help.subshells = identity.subshells
        channels = kernel._connect(identity.routing_id.encode())
        if identity.recalls:
            channels.bound_output()
        return kernel

    async def settle(self, timeout: float) -> None:  # noqa: ASYNC109 - the caller's, with a text of its own
        """See that it answers, while no cell runs in it. Raises `KernelError`; the caller then closes it."""
        work = self._spawn(self._settle())
        try:
            await asyncio.wait({work, self.died}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            failure = work.exception() if work.done() else KernelError("", self._no_answer(timeout))
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)  # what it fails with from here on is of no interest
        if isinstance(failure, KernelError):  # or it ended just then
            raise KernelError("The kernel could not be taken over", failure.reason) from failure
        if isinstance(failure, wire.BadFrame):
            raise KernelError("The kernel could not be taken over", f"it sent {failure}") from failure
        if failure is not None:
            raise failure

    def _no_answer(self, timeout: float) -> str:
        return f"it ended: {self.died.result()}" if self.died.done() else f"no answer within {timeout:g} s"

    async def _settle(self) -> None:
        if not self._identity.recalls:
            await until_heard(self._requests, self._iopub_seen)
            return
        # Not by what it answers between cells: what a cell has left in its loop may keep that busy for long.
        await until_heard(self._requests, self._iopub_seen, on_control=True)
        recalled = await self._recalled()
        if recalled.runs:  # and has been answered: it was being ended when that server did
            await until_heard(self._requests, self._iopub_seen)
        messages, since = self._heard(recalled)
        if recalled.runs:
            messages, since = [*messages, *since], []
        await self._publish([*recall.since_idle(messages, recalled.cell), *since])
        await self._hand_on()

    def take_over(
        self,
        msg_id: str,
        done: Callable[[Outcome], None],
        listener: Listener | None,
        *,
        asks: bool,
        began: float,
    ) -> Execution:
        """Wait for the end of a cell that an earlier server has sent; see `Kernel.submit`.

        `began` is when it was sent, in monotonic seconds. `listener` is told of what comes from now on. What of the
        outcome is lost is added by `with_losses`.
        """
        execution = self._table.add(msg_id, done, listener, asks=asks)
        execution.began = min(execution.began, began)
        execution.told = True  # by the server that sent it
        if began + BEGIN_GRACE < time.monotonic():
            execution.begun = began  # what the kernel said of it need not be waited for: an interrupt can reach it
        if self.died.done():
            self._table.end(execution, end_causes.process_ended(self.died.result()))
        else:
            self._spawn(self._follow(execution))
        return execution

    async def catch_up(self, timeout: float) -> None:  # noqa: ASYNC109 - what is not told by then is lost, no error
        """Wait until the cell that is taken over has all that it wrote before, if there is one and the kernel lives."""
        if len(self._table):
            ends: set[asyncio.Future[Any]] = {self._caught_up, self.died}
            await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    # -- what came before ---------------------------------------------------------

    async def _follow(self, execution: Execution) -> None:
        try:
            if self._identity.recalls:
                await until_heard(self._requests, self._iopub_seen, on_control=True)
                await self._catch_up(execution, await self._recalled())
            self._caught_up.set_result(None)
            await self._see_to_the_reply(execution)
        except wire.BadFrame as exc:
            self._break(f"it sent {exc}")
        except KernelError:
            return  # it has died, which ends the execution

    async def _recalled(self) -> recall.Recalled:
        """Ask what it recalls, and wait for the mark among its output. Raises `BadFrame`."""
        self._marked.clear()
        reply = await self._requests.ask("control", recall.REQUEST, {})
        if reply is None:
            raise KernelError("The kernel is dead", "it ended while it was taken over")
        recalled = recall.read(reply)
        if self._held is not None:
            with contextlib.suppress(TimeoutError):  # one that lies may not send it
                await asyncio.wait_for(self._marked.wait(), MARK_TIMEOUT)
        return recalled

    def _heard(self, recalled: recall.Recalled) -> tuple[list[wire.Message], list[wire.Message]]:
        """Give all that was published, before the mark and behind it; `_hand_on` is to follow."""
        held = self._held or []
        if self._held is not None:
            self._held, self._held_bytes = [], 0
        return recall.before_mark(held, recalled)

    async def _publish(self, messages: Sequence[wire.Message]) -> None:
        """Take messages of iopub in turns with what else there is to do. Raises `BadFrame`."""
        for message in messages:
            await turns().run(self._table.taking_iopub(message))

    async def _hand_on(self) -> None:
        """Take what has come meanwhile; from then on it is taken at once. Raises `BadFrame`."""
        while self._held:
            held, self._held = self._held, []
            await self._publish(held)
        self._held = None

    async def _catch_up(self, execution: Execution, recalled: recall.Recalled) -> None:
        if recalled.cell != execution.msg_id:
            recalled = recall.Recalled()  # of another cell: ours has not begun
        if self._held is None:
            self._take_answers(recalled)
            return
        messages, since = self._heard(recalled)
        self._missing = recalled.left_out
        # It is for the result: nobody knows how much of it those who watch were told before.
        listener, execution.listener = execution.listener, None
        try:
            await self._publish(messages)
        finally:
            execution.listener = listener
        self._take_answers(recalled)
        await self._publish(since)
        await self._hand_on()

    def _take_answers(self, recalled: recall.Recalled) -> None:
        if (reply := recalled.reply_message()) is not None:
            self._table.on_shell(reply)
        if (question := recalled.question()) is not None:
            self._table.on_stdin(question)

    async def _see_to_the_reply(self, execution: Execution) -> None:
        """End the execution if its reply, or its output's end, was sent to nobody."""
        if execution.state in FINAL:
            return
        # Answered when the cell has ended, and after its reply.
        await self._requests.ask("shell", "kernel_info_request", {})
        if self.died.done() or execution.state in FINAL:
            return
        if execution.reply is None and self._identity.recalls:
            recalled = await self._recalled()
            if recalled.cell == execution.msg_id:
                self._take_answers(recalled)
        if execution.reply is None:
            lost = end_causes.RESULT_LOST if not self._identity.recalls else end_causes.NEVER_RAN
            self._table.end(execution, lost)
        elif execution.state not in FINAL:
            await asyncio.wait({self.died}, timeout=LATE_IDLE)
            idle = wire.Message("status", "", execution.msg_id, b"{}", b'{"execution_state":"idle"}')
            self._table.on_iopub(idle)

    def with_losses(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a cell that was taken over, with what of it is lost."""
        if (
            outcome.cause is None
            and not outcome.success
            and not self.died.done()
            and outcome.error in end_causes.UNKNOWN
        ):
            outcome = replace(outcome, state_preserved=True)
        if self._missing == 0:
            return outcome
        what = "what it wrote before that is lost"
        if self._missing is not None:
            what = f"the first {self._missing} bytes that it wrote are lost"
        left_out = outcome.truncated or {"bytes": 0, "kept": "tail", "at": 0}
        left_out = {**left_out, "bytes": left_out["bytes"] + (self._missing or 0)}
        return replace(outcome, truncated=left_out, late_output=PARTLY_LOST.format(what=what) + outcome.late_output)

    def _disconnect(self) -> None:
        held, self._held = self._held or [], None
        super()._disconnect()
        if not self._closing and self._fault is None:  # it has died before it could say what came before
            for message in held:
                with contextlib.suppress(wire.BadFrame):
                    self._table.on_iopub(message)

    def _take(self, channel: str, message: wire.Message) -> Generator[None, None, None]:
        if channel != "iopub" or self._held is None or self._fault is not None:
            yield from super()._take(channel, message)
            return
        self._iopub_seen.set()
        self._held.append(message)
        self._held_bytes += _weight(message)
        if message.msg_type == recall.MARK:
            self._marked.set()
        if self._held_bytes > HELD:
            log.warning("kernel_recollection_given_up", why="more was published meanwhile than is kept")
            held, self._held = self._held, None
            self._marked.set()
            for each in held:
                yield from super()._take(channel, each)


def _weight(message: wire.Message) -> int:
    """Give about how many bytes a message takes while it is held."""
    parts = (message.content, message.metadata, message.msg_type, message.msg_id, message.parent_id)
    return _OVERHEAD + sum(map(len, parts))
