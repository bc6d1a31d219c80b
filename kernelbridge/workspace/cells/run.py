"""One running cell, from its submission to a kernel, by this server or an earlier one, to its answer.

It owns the execution in the kernel, the deadline, the question that the cell asks, the interrupts that end it, and the
steps of its outcome (`outcome.py`).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, KernelError, LimitExceeded, SessionClosed
from kernelbridge.jupyter.adopted import AdoptedKernel
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Asked, CellEvent, GivenUp, Listener
from kernelbridge.jupyter.execution import Execution
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.adoption.session_state import RunningCell
from kernelbridge.workspace.cells.deadline import Deadline
from kernelbridge.workspace.cells.interrupts import Ending, Escalation, Graces, Report, Reports
from kernelbridge.workspace.cells.kernel_supervisor import KernelSupervisor
from kernelbridge.workspace.cells.late_output import LateOutput
from kernelbridge.workspace.cells.outcome import Step, finish, with_hint, written
from kernelbridge.workspace.cells.prompts import END_OF_INPUT, Prompt
from kernelbridge.workspace.denials import Denials
from kernelbridge.workspace.disk_watch import DiskStops
from kernelbridge.workspace.interrupt_progress import InterruptProgress
from kernelbridge.workspace.job_queue import answer
from kernelbridge.workspace.resource_watch import MemoryWatch

MAX_SIGNALS = 16
"""Interrupts of one cell that may be under way and only signal it."""

ExecutionDone = Callable[[Outcome | KernelBridgeError], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A cell, and where its outcome goes."""

    cell: Cell
    done: ExecutionDone
    """Called once, with the outcome or the error that kept the cell from running."""
    listener: Listener | None = None
    """Called with events while it runs. A cell that may ask for input has one."""
    timeout: float | None = None
    """Seconds that it may run, without the time in which it waits for input; None: the session's limit."""
    report: Report | None = None
    """Called with each step by which it is ended when its time is over."""
    request_id: str | None = None
    """The `requestId`, for a later server, which may have to answer."""

    @property
    def text(self) -> str:
        """Its code."""
        return self.cell.code


@dataclass(frozen=True, slots=True)
class RunServices:
    """What all runs of a session use."""

    supervisor: KernelSupervisor
    record: Record
    memory: MemoryWatch
    denials: Denials
    disk_stops: DiskStops
    late: LateOutput
    tasks: TaskSet
    graces: Graces
    input_timeout: float | None
    """Seconds that a question waits for its answer."""
    on_answer: Callable[[], None]
    """Called when a run was answered."""
    start_next: Callable[[], None]
    """Called when another run may begin."""


class Run:
    """One cell while it runs. It is over when it was answered and no interrupt of it is under way."""

    def __init__(self, job: Job, services: RunServices, previous: RunningCell | None = None) -> None:
        """`previous` describes a cell that an earlier server has sent; its kernel is not reached yet."""
        self.job = job
        self.since = time.time() if previous is None else previous.since
        """When it began, in seconds since the epoch."""
        self.answered = False
        self.prompt: Prompt | None = None
        """The question that it asks, while it waits for a line of input."""
        self._services = services
        self._previous = previous
        self._interrupts = Reports()
        """The requests that wait until its kernel is reached."""
        self._execution: Execution | None = None
        self._deadline: Deadline | None = None
        self._answer_by: Deadline | None = None
        """Its clock runs while a question waits, and stands still between two that are not answered: a cell that gives
        up its questions and asks again would otherwise run for ever, past all limits."""
        self._escalation: Escalation | None = None
        self._signals = 0
        """Interrupts under way that only signal the cell."""
        self._was_signalled = False

    @property
    def over(self) -> bool:
        """Whether another cell may be submitted: an interrupt that is under way could hit it."""
        return self.answered and self._escalation is None and not self._signals

    @property
    def unreached(self) -> bool:
        """Whether it is an earlier server's cell whose kernel is not reached yet."""
        return self._previous is not None

    @property
    def _runs(self) -> bool:
        """Whether its kernel is known to run it, and nothing ends it."""
        return self._execution is not None and self._escalation is None and not self.answered

    def start(self, kernel: Kernel) -> None:
        """Submit the cell to a kernel."""
        cell, timeout, now = self.job.cell, self.job.timeout, time.monotonic()

        def note(msg_id: str) -> None:
            running = RunningCell(
                msg_id,
                self.job.request_id,
                cell.stream,
                cell.allow_stdin,
                since=self.since,
                began=now,
                timeout=timeout,
                left=timeout,
                counted=now,
            )
            self._services.record.begins(running)

        self._follow(functools.partial(kernel.submit, cell, note=note), timeout)

    def adopt(self, kernel: AdoptedKernel) -> None:
        """Continue with a cell that an earlier server has submitted to this kernel."""
        previous, self._previous = self._previous, None
        if previous is None:
            raise AssertionError("it is reached")
        begin = functools.partial(kernel.adopt_cell, previous.msg_id, asks=previous.asks, began=previous.began)
        self._follow(begin, previous.time_left(time.monotonic()), kernel.with_losses)
        if self._deadline is not None:
            self._deadline.restart()  # a question is asked again, which stops it
        if self._execution is None:
            self._never_interrupted()
        elif self._interrupts:
            self._escalate(kernel, Ending("interrupted"), self._interrupts)

    def fail(self, outcome: Outcome | KernelBridgeError) -> None:
        """Answer a cell whose kernel cannot be reached any more."""
        self._previous = None
        self._never_interrupted()
        self._answer(outcome)

    def interrupt(self, report: Report, ended: int | None, *, escalate: bool) -> bool:
        """Interrupt the cell; return False if it has ended, or ends because its kernel has just died.

        `report` is called with each step; `ended`, the number of waiting cells that were ended, is in the last. Without
        `escalate` there is one step, unless the cell is being ended anyway, or its kernel is not reached yet or has no
        hooks: then an interrupt can cost the reply, which only the escalation notices. Raises `LimitExceeded`.
        """
        kernel = self._services.supervisor.kernel
        if kernel is not None and kernel.has_hooks and not escalate and self._runs:
            self._signal(kernel, report, ended)
            return True
        if self._escalation is not None and not self._escalation.reports.finished:
            self._escalation.reports.add(report, ended)
        elif self._previous is not None:
            self._interrupts.add(report, ended)
        elif not self.answered and kernel is not None:
            self._escalate(kernel, Ending("interrupted"), Reports(report, ended))
        else:
            return False
        return True

    def reply_input(self, value: str) -> None:
        """Answer the question that the cell asks. Raises `KernelError`."""
        kernel = self._services.supervisor.kernel
        if kernel is None:
            raise KernelError("The kernel is dead", "send the request again: a new one is started")
        kernel.reply_input(value)
        self._drop_prompt()
        self._answer_by = None
        if self._deadline is not None:
            self._deadline.restart()

    def _signal(self, kernel: Kernel, report: Report, ended: int | None) -> None:
        if self._signals >= MAX_SIGNALS:
            raise LimitExceeded("Too many interrupts are under way in this session", "wait for their answers")
        if self.prompt is not None:  # the interrupt ends it
            self._drop_prompt()
            kernel.withdraw_question()
            if self._deadline is not None:
                self._deadline.restart()
        self._signals += 1
        self._was_signalled = True
        self._services.tasks.create(self._send_signal(kernel, report, ended))

    async def _send_signal(self, kernel: Kernel, report: Report, ended: int | None) -> None:
        """Signal the cell, and report when it is there: no other cell may be submitted before."""
        try:
            async with asyncio.timeout(self._services.graces.sigint):
                await kernel.interrupt(None)  # what the cell fails with later may be something else
            report(InterruptProgress("sigint", done=True, state_preserved=not kernel.died.done(), ended=ended))
        except TimeoutError:
            reason = "the code does not look for signals; without `escalate: false` it is ended in any case"
            report(KernelError("The interrupt was not noticed", reason))
        except KernelBridgeError as exc:
            report(exc)
        except asyncio.CancelledError:
            report(SessionClosed())
            raise
        finally:
            self._signals -= 1
            self._services.start_next()

    def _follow(
        self,
        begin: Callable[[Callable[[Outcome], None], Listener | None], Execution],
        timeout: float | None,
        *first: Step,
    ) -> None:
        """Call `begin` and wait for the outcome; `first` are steps of it before the others."""
        denials = self._services.denials
        hinted = functools.partial(with_hint, denials=denials, mark=denials.mark())
        explained = functools.partial(self._services.memory.explained, mark=self._services.memory.mark())
        stops, late = self._services.disk_stops, self._services.late
        stopped = functools.partial(stops.explained, mark=stops.mark())
        steps: tuple[Step, ...] = (*first, explained, written, self._ended, hinted, stopped, late.into)
        listener = self._listen if self.job.cell.allow_stdin else self.job.listener
        try:
            execution = begin(lambda outcome: finish(outcome, steps, self._finish, self._services.tasks), listener)
        except KernelBridgeError as exc:
            self._answer(exc)
            return
        if not self.answered:
            self._execution = execution
            if timeout is not None:
                self._deadline = Deadline(timeout, self._end_overdue, self._services.record.counts)

    def _listen(self, event: CellEvent) -> None:
        """Handle an event of a cell that may ask for input; its clock stands still while it waits."""
        if self.answered or self.job.listener is None:
            return
        if isinstance(event, GivenUp):
            self._drop_prompt()
            if self._deadline is not None:
                self._deadline.restart()
            return
        if isinstance(event, Asked):
            if self._escalation is not None:
                self._refuse_question(self._escalation)
                return
            if self._deadline is not None:
                self._deadline.stop()
            self._drop_prompt()
            self.prompt = Prompt(event)
            if self._answer_by is None:
                self._answer_by = Deadline(self._services.input_timeout, self._end_unanswered)
            else:
                self._answer_by.restart()
        self.job.listener(event)

    def _refuse_question(self, escalation: Escalation) -> None:
        """Answer a cell that asks while it is ended (a debugger does) that there is no more input."""
        kernel = self._services.supervisor.kernel
        if kernel is not None and escalation.may_refuse():
            kernel.reply_input(END_OF_INPUT)

    def _drop_prompt(self) -> None:
        """Forget the question. Idempotent."""
        self.prompt = None
        if self._answer_by is not None:
            self._answer_by.stop()

    # -- its end ------------------------------------------------------------------

    def _ended(self, outcome: Outcome) -> Outcome:
        self._execution = None
        if self._deadline is not None:
            self._deadline.cancel()
        self._drop_prompt()
        if outcome.cause in {None, "interrupted"} and not outcome.state_preserved:
            self._services.supervisor.use_no_more()
        if self._escalation is not None:
            return self._escalation.finished(outcome)
        if self._was_signalled and (outcome.error or "").startswith("KeyboardInterrupt"):
            return replace(outcome, cause=outcome.cause or "interrupted")
        return outcome

    def _finish(self, outcome: Outcome) -> None:
        self._answer(outcome)
        self._services.start_next()

    def _answer(self, outcome: Outcome | KernelBridgeError) -> None:
        self.answered = True
        answer(self.job.done, outcome)
        self._services.record.ended()
        self._services.on_answer()

    def _never_interrupted(self) -> None:
        """Report to the requests that wait to interrupt the cell that it has ended with its interpreter."""
        self._interrupts.send("none", done=True, state_preserved=False)

    def _end_overdue(self) -> None:
        self._time_out(f"ExecutionTimeout: the cell ran longer than its limit of {self.job.timeout:g} s")

    def _end_unanswered(self) -> None:
        limit = self._services.input_timeout
        self._time_out(f"InputTimeout: nobody answered the cell's question within {limit:g} s")

    def _time_out(self, error: str) -> None:
        kernel = self._services.supervisor.kernel
        # If the kernel has just died, the cell ends by that.
        if self._escalation is None and not self.answered and kernel is not None:
            self._escalate(kernel, Ending("timeout", error), Reports(self.job.report))

    def _escalate(self, kernel: Kernel, ending: Ending, reports: Reports) -> None:
        if self._execution is None:
            raise AssertionError("nothing runs")
        if self._deadline is not None:
            self._deadline.cancel()
        if self.prompt is not None:
            self._drop_prompt()
            kernel.withdraw_question()
        restart, graces = self._services.supervisor.restart, self._services.graces
        self._escalation = Escalation(kernel, self._execution, ending, reports, restart=restart, graces=graces)
        self._services.tasks.create(self._run_escalation(self._escalation))

    async def _run_escalation(self, escalation: Escalation) -> None:
        try:
            await escalation.run()
        finally:
            self._escalation = None
            self._services.start_next()
