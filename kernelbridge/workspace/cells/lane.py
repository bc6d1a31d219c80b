"""The execution lane: the queue of cells in front of a workspace's interpreter.

Cells run first-in first-out, one at a time. The queue is here and not in the kernel, so that a
kernel's death costs only the cell that ran: those behind it go to its successor.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from kernelbridge.aio.tasks import TaskSet, Wait
from kernelbridge.errors import KernelBridgeError, KernelError
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.end_causes import KERNEL_RESTARTED, SESSION_CLOSED, sandbox_lost_meanwhile
from kernelbridge.jupyter.events import Asked, CellEvent, Listener
from kernelbridge.jupyter.execution import Execution
from kernelbridge.jupyter.help import Help
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.workspace.cells.deadline import Deadline
from kernelbridge.workspace.cells.interrupts import Ending, Escalation, Graces, Progress, Report, Reports
from kernelbridge.workspace.cells.kernel_supervisor import KernelSupervisor, Questions, StartKernel, then
from kernelbridge.workspace.cells.late_output import LateOutput
from kernelbridge.workspace.cells.queue import (
    NEVER_CLOSED,
    NEVER_INTERRUPTED,
    NEVER_RESTARTED,
    CellRecord,
    Job,
    WaitingJobs,
)
from kernelbridge.workspace.cells.run import END_OF_INPUT, PreviousCell, Prompt, Prompts, wait_for_spill
from kernelbridge.workspace.hints import cell_hint
from kernelbridge.workspace.queue_limits import run_timeout
from kernelbridge.workspace.resource_watch import CellDone, MemoryWatch
from kernelbridge.workspace.session_state import RunningCell
from kernelbridge.workspace.states import KernelEvent, KernelState

T = TypeVar("T")

Warmed = Callable[[KernelBridgeError | None], None]


class ExecutionLane:
    """Runs the cells of one workspace."""

    def __init__(
        self,
        start_kernel: StartKernel,
        *,
        destroy_sandbox: Callable[[], Awaitable[None]],
        queue_limit: int,
        tasks: TaskSet,
        memory: MemoryWatch,
        record: CellRecord,
        loss_told: Callable[[], None] | None = None,
        longest: float | None = None,
        input_timeout: float | None = None,
        graces: Graces = Graces(),  # noqa: B008 - it is frozen
        observer: Callable[[KernelEvent], None] | None = None,
    ) -> None:
        self._waiting = WaitingJobs(requests=queue_limit)
        self._tasks = tasks
        self._memory = memory
        memory.serve(busy=lambda: self._running is not None, tell_later=self.tell)
        self._graces = graces
        self._longest = longest
        self._input_timeout = input_timeout
        self._prompts = Prompts(limit=input_timeout, unanswered=self._end_unanswered)
        self._supervisor = KernelSupervisor(
            start_kernel,
            dependent=self,
            late=self.tell,
            destroy_sandbox=destroy_sandbox,
            tasks=tasks,
            observer=observer,
        )
        self._questions = Questions(self._supervisor, tasks)
        self._record = record
        self._warming: list[Warmed] = []
        self._running: Job | None = None
        self._execution: Execution | None = None
        self._since: float | None = None
        self._deadline: Deadline | None = None
        self._escalation: Escalation | None = None
        self._left: PreviousCell | None = None
        """What an earlier server has sent, until the kernel that has it is taken over."""
        self._quiet = asyncio.Event()
        """Set when nothing runs, and nothing will."""
        self._late = LateOutput(loss_told or record.loss_told)
        self._closed = False
        self.on_rest: Callable[[], object] = lambda: None
        """Called when a cell has been answered; another may begin at once."""

    @property
    def state(self) -> KernelState:
        """The kernel's state."""
        return self._supervisor.state

    @property
    def waiting(self) -> int:
        """How many cells wait."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or is ended, or the interpreter is on its way."""
        asked = self._waiting or self._warming or self._questions.waiting
        return bool(self._running or self._escalation or asked or self._supervisor.busy)

    @property
    def occupied(self) -> bool:
        """Whether a cell runs or waits."""
        return self._running is not None or len(self._waiting) > 0

    @property
    def running(self) -> Job | None:
        """The cell that runs."""
        return self._running

    @property
    def has_lost(self) -> bool:
        """Whether an interpreter would be lost with the session, or one was and no result has told that."""
        return self._supervisor.lived or self._late.lost is not None

    def was_lost(self, how: str) -> None:
        """Have the next result tell how an earlier life's interpreter ended."""
        self._late.lost = how

    @property
    def running_since(self) -> float | None:
        """When the running cell began, in seconds since the epoch; None while none runs."""
        return None if self._running is None else self._since

    @property
    def prompt(self) -> Prompt | None:
        """What the running cell asks, while it waits for a line of input."""
        return self._prompts.waiting

    def submit(self, job: Job) -> None:
        """Queue a cell. Raises `BadRequest` if it may run too long, `LimitExceeded` or `KernelError`."""
        self._check_open()
        timeout = run_timeout(job.timeout, self._longest)
        if timeout != job.timeout:
            job = replace(job, timeout=timeout)
        self._waiting.put(job)
        self._pump()

    def warm(self, done: Warmed) -> None:
        """Have a kernel without running a cell; `done` is called once, with None or the error that prevented it."""
        self._check_open()
        if self._supervisor.state is KernelState.READY:
            done(None)
            return
        self._warming.append(done)
        self._supervisor.need()

    def tell(self, text: str) -> None:
        """Put a text into the next result's late output."""
        self._late.add(text)

    def interrupt(self, report: Report, *, queued: bool = False) -> None:
        """Interrupt what runs; `report` is told of each step. With `queued`, what waits is ended too.

        While the interpreter starts, the first cell that waits for it is what is meant; while one is taken over, the
        cell in it, as soon as that can be reached. Raises `LimitExceeded`.
        """
        ended = self._waiting.end(NEVER_INTERRUPTED) if queued else None
        kernel = self._supervisor.kernel
        if self._escalation is not None and not self._escalation.reports.told:
            self._escalation.reports.add(report, ended)
        elif self._left is not None:
            self._left.interrupts.add(report, ended)
        elif self._running is not None and kernel is not None:
            self._escalate(kernel, Ending("interrupted"), Reports(report, ended))
        else:
            if self._running is None and self._waiting and kernel is None:
                ended = self._waiting.end(NEVER_INTERRUPTED, 1)
            preserved = self._running is None and self._late.lost is None
            report(Progress("none", done=True, state_preserved=preserved, ended=ended))

    def restart(self, done: Callable[[int | KernelBridgeError], None]) -> None:
        """Have a new interpreter; `done` is called with how many cells were ended for it, or why there is none.

        Raises `LimitExceeded` or `KernelError`.
        """
        self._check_open()
        self._questions.take("")
        ended = self._waiting.end(NEVER_RESTARTED)
        if self._running is not None:
            ended += 1
        restarted = self._supervisor.restart()
        self._supervisor.end_pending(KERNEL_RESTARTED)
        self._questions.answer(then(restarted, ended), done)

    def question(
        self, code: str, put: Callable[[Help], Awaitable[T]], done: Callable[[T | KernelBridgeError], None]
    ) -> None:
        """Put a question about `code`; the interpreter is started if need be. `done` is called with the answer.

        Raises `LimitExceeded` or `KernelError`.
        """
        self._check_open()
        self._questions.ask(code, put, done)

    def reply_input(self, value: str, input_id: str | None) -> None:
        """Answer what the running cell asks. Raises `NoInputWaiting`, `BadRequest` or `KernelError`."""
        self._prompts.check(value, input_id)
        kernel = self._supervisor.kernel
        if kernel is None:
            raise KernelError("The kernel is dead", "send the request again: a new one is started")
        kernel.reply_input(value)
        self._prompts.drop()
        if self._deadline is not None:
            self._deadline.go_on()

    def adopt(
        self, start: StartKernel | None, incarnation: int, lost: str | None, job: Job | None, cell: RunningCell | None
    ) -> Wait:
        """Go on with what an earlier server left: its interpreter, whose number was `incarnation`, and what runs in it.

        `start` takes it over, for which the result waits; without it there is none: `lost` says how it ended.
        """
        self._late.lost = lost or self._late.lost
        if job is not None and cell is not None:
            self._running, self._left, self._since = job, PreviousCell(job, cell), cell.since
        self._supervisor.adopt(start, incarnation)
        if start is None:
            self._lose_left()
        return self._supervisor.reached

    def finish(self) -> asyncio.Event:
        """Take no more, and end what waits with cause `session_closed`; the result is set once nothing runs."""
        self._closed = True
        self._warmed(KernelError("The session was closed", "send the request again to open it anew"))
        self._waiting.end(NEVER_CLOSED)
        if self._running is None:
            self._quiet.set()
        return self._quiet

    def end(self) -> None:
        """End every cell with cause `session_closed` and take no more. Idempotent; no I/O."""
        self.finish()
        self._supervisor.end()
        self._supervisor.end_pending(SESSION_CLOSED)
        self._answer_left(Outcome.ended("session_closed", SESSION_CLOSED.error))

    async def leave(self) -> None:
        """Leave the kernel and what runs in it to another server, after `finish`. Whoever waits for it is not told."""
        self._supervisor.end()
        await self._supervisor.leave()

    async def aclose(self) -> None:
        """End the kernel, after `end`. Idempotent."""
        self.end()
        await self._supervisor.aclose()

    # -- what the interpreter tells (`kernel_supervisor.Dependent`) ----------------------

    def interpreter_ready(self) -> None:
        """Go on with the cells that wait for it."""
        self._warmed(None)
        self._take_over_left()
        self._pump()

    def interpreter_reached(self) -> None:
        """Have what an earlier server's cell has told so far, before it is ended."""
        self._take_over_left()

    def interpreter_failed(self, error: KernelBridgeError) -> None:
        """Answer everybody who waits for it."""
        self._answer_left(error)
        self._warmed(error)
        self._waiting.end(error)
        self.on_rest()

    def interpreter_gone(self, how: str) -> None:
        """Remember that its variables are lost, and go on in another."""
        self._late.lost = how
        self._lose_left()
        self._pump()
        if self._warming:
            self._supervisor.need()

    # -- what an earlier server left --------------------------------------------------

    def _take_over_left(self) -> None:
        left, self._left, kernel = self._left, None, self._supervisor.adopted
        if left is None or kernel is None:
            return
        begin = functools.partial(kernel.take_over, left.cell.msg_id, asks=left.cell.asks, began=left.cell.began)
        self._follow(left.job, begin, left.cell.left_at(time.monotonic()))
        if self._deadline is not None:
            self._deadline.go_on()  # until the cell asks again, if it still does
        if self._execution is None:
            left.never_interrupted()
        elif left.interrupts:
            self._escalate(kernel, Ending("interrupted"), left.interrupts)

    def _lose_left(self) -> None:
        self._answer_left(Outcome.ended("sandbox_lost", sandbox_lost_meanwhile().error))

    def _answer_left(self, answer: Outcome | KernelBridgeError) -> None:
        left, self._left = self._left, None
        if left is not None:
            self._running = None
            left.answer(answer)
            self._rest()

    # -- the queue ------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise KernelError("The session is closed", "send the request again to open it anew")

    def _warmed(self, error: KernelBridgeError | None) -> None:
        warming, self._warming = self._warming, []
        for done in warming:
            done(error)

    def _pump(self) -> None:
        if self._running is not None or self._escalation is not None or not self._waiting or self._closed:
            return
        kernel = self._supervisor.kernel
        if kernel is None:
            self._supervisor.need()
            return
        self._run(kernel, self._waiting.next())

    def _run(self, kernel: Kernel, job: Job) -> None:
        self._running, self._since = job, (since := time.time())
        note = functools.partial(self._record.begins, job=job, since=since, began=time.monotonic())
        self._follow(job, functools.partial(kernel.submit, job.cell, note=note), job.timeout)

    def _follow(self, job: Job, begin: Callable[[CellDone, Listener | None], Execution], timeout: float | None) -> None:
        """Have a kernel begin to work on what runs now."""
        try:
            listener = self._listen if job.cell.allow_stdin else job.listener
            execution = begin(self._memory.over_cell(wait_for_spill(self._finished, self._tasks)), listener)
        except KernelBridgeError as exc:
            self._running = None
            job.answer(exc)
            self._rest()
            return
        if self._running is job:
            self._execution = execution
            if timeout is not None:
                self._deadline = Deadline(timeout, self._end_overdue, self._record.counts)

    def _listen(self, event: CellEvent) -> None:
        """Listen to a cell that may ask: its clock stops while it waits."""
        if self._running is None or self._running.listener is None:
            return
        if isinstance(event, Asked):
            if self._escalation is not None:
                self._refuse_question(self._escalation)
                return
            if self._deadline is not None:
                self._deadline.stop()
            self._prompts.ask(event)
        self._running.listener(event)

    def _finished(self, outcome: Outcome) -> None:
        job, self._running, self._execution = self._running, None, None
        if job is None:
            raise AssertionError("an outcome without a running cell")
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._prompts.drop()
        if outcome.cause in {None, "interrupted"} and not outcome.state_preserved:
            self._supervisor.use_no_more()
        if self._escalation is not None:
            outcome = self._escalation.finished(outcome)
        if (hint := cell_hint(outcome)) is not None:
            outcome = replace(outcome, hint=hint)
        job.answer(self._late.into(outcome))
        self._rest()
        self._pump()

    def _rest(self) -> None:
        """Note that nothing runs."""
        self._record.ended()
        if self._closed:
            self._quiet.set()
        self.on_rest()

    # -- the end of what runs ---------------------------------------------------------

    def _end_overdue(self) -> None:
        if self._running is not None:
            limit = self._running.timeout
            self._time_out(f"ExecutionTimeout: the cell ran longer than its limit of {limit:g} s")

    def _end_unanswered(self) -> None:
        self._time_out(f"InputTimeout: nobody answered the cell's question within {self._input_timeout:g} s")

    def _time_out(self, error: str) -> None:
        kernel = self._supervisor.kernel
        # A kernel that has just died ends its cell by itself.
        if self._escalation is None and self._running is not None and kernel is not None:
            self._escalate(kernel, Ending("timeout", error), Reports(self._running.report))

    def _escalate(self, kernel: Kernel, ending: Ending, reports: Reports) -> None:
        if self._execution is None:
            raise AssertionError("nothing runs")
        if self._deadline is not None:
            self._deadline.cancel()
        if self._prompts.waiting is not None:
            self._prompts.drop()
            kernel.withdraw_question()
        restart = self._supervisor.restart
        self._escalation = Escalation(kernel, self._execution, ending, reports, restart=restart, graces=self._graces)
        self._tasks.create(self._go_as_far_as_it_takes(self._escalation))

    async def _go_as_far_as_it_takes(self, escalation: Escalation) -> None:
        try:
            await escalation.run()
        finally:
            self._escalation = None
            self._pump()

    def _refuse_question(self, escalation: Escalation) -> None:
        """Answer a cell that asks although it is to end, a debugger say: there is no more input."""
        kernel = self._supervisor.kernel
        if kernel is not None and escalation.may_refuse():
            kernel.reply_input(END_OF_INPUT)
