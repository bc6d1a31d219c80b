"""One running cell: from when a kernel is given it, or was given it by an earlier server, to its answer.

It has its execution in the kernel, its deadline, the question that it asks, the interrupts that end it, and the steps
of its outcome (`outcome.py`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, KernelError
from kernelbridge.jupyter.adopted import AdoptedKernel
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.events import Asked, CellEvent, Listener
from kernelbridge.jupyter.execution import Execution
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.workspace.cells.deadline import Deadline
from kernelbridge.workspace.cells.interrupts import Ending, Escalation, Graces, Report, Reports
from kernelbridge.workspace.cells.kernel_supervisor import KernelSupervisor
from kernelbridge.workspace.cells.late_output import LateOutput
from kernelbridge.workspace.cells.outcome import Step, take, with_hint, written
from kernelbridge.workspace.cells.prompts import END_OF_INPUT, Prompt
from kernelbridge.workspace.cells.queue import CellRecord, Job
from kernelbridge.workspace.resource_watch import MemoryWatch
from kernelbridge.workspace.session_state import RunningCell


@dataclass(frozen=True, slots=True)
class RunServices:
    """What all runs of a session use."""

    supervisor: KernelSupervisor
    record: CellRecord
    memory: MemoryWatch
    late: LateOutput
    tasks: TaskSet
    graces: Graces
    input_timeout: float | None
    """Seconds that a question waits for its answer."""
    rested: Callable[[], None]
    """Called when a run has been answered."""
    go_on: Callable[[], None]
    """Called when another one may begin."""


class Run:
    """One cell while it runs. It is over when it is answered and no interrupt of it is under way."""

    def __init__(self, job: Job, services: RunServices, left: RunningCell | None = None) -> None:
        """`left` describes a cell that an earlier server has sent; its kernel is not reached yet."""
        self.job = job
        self.since = time.time() if left is None else left.since
        """When it began, in seconds since the epoch."""
        self.answered = False
        self.prompt: Prompt | None = None
        """What it asks, while it waits for a line of input: one question at a time."""
        self._services = services
        self._left = left
        self._interrupts = Reports()
        """Those that wait for its kernel to be reached."""
        self._execution: Execution | None = None
        self._deadline: Deadline | None = None
        self._answer_by: Deadline | None = None
        self._escalation: Escalation | None = None

    @property
    def over(self) -> bool:
        """Whether another cell may be given to the kernel: an interrupt that is under way could hit that."""
        return self.answered and self._escalation is None

    @property
    def unreached(self) -> bool:
        """Whether the kernel that has it is still to be reached."""
        return self._left is not None

    def start(self, kernel: Kernel) -> None:
        """Give the cell to a kernel."""
        note = functools.partial(self._services.record.begins, job=self.job, since=self.since, began=time.monotonic())
        self._follow(functools.partial(kernel.submit, self.job.cell, note=note), self.job.timeout)

    def take_over(self, kernel: AdoptedKernel) -> None:
        """Go on with a cell that an earlier server has given to this kernel."""
        left, self._left = self._left, None
        if left is None:
            raise AssertionError("it is reached")
        begin = functools.partial(kernel.take_over, left.msg_id, asks=left.asks, began=left.began)
        self._follow(begin, left.time_left(time.monotonic()), kernel.with_losses)
        if self._deadline is not None:
            self._deadline.go_on()  # until the cell asks again, if it still does
        if self._execution is None:
            self._never_interrupted()
        elif self._interrupts:
            self._escalate(kernel, Ending("interrupted"), self._interrupts)

    def fail(self, answer: Outcome | KernelBridgeError) -> None:
        """Answer a cell whose kernel cannot be reached any more."""
        self._left = None
        self._never_interrupted()
        self._answer(answer)

    def interrupt(self, report: Report, ended: int | None) -> bool:
        """Interrupt the cell; return False if it has ended, or ends because its kernel has just died.

        `report` is told of each step, and of the `ended` waiting cells in the last. Raises `LimitExceeded`.
        """
        if self._escalation is not None and not self._escalation.reports.told:
            self._escalation.reports.add(report, ended)
        elif self._left is not None:
            self._interrupts.add(report, ended)
        elif not self.answered and (kernel := self._services.supervisor.kernel) is not None:
            self._escalate(kernel, Ending("interrupted"), Reports(report, ended))
        else:
            return False
        return True

    def reply_input(self, value: str) -> None:
        """Answer what the cell asks. Raises `KernelError`."""
        kernel = self._services.supervisor.kernel
        if kernel is None:
            raise KernelError("The kernel is dead", "send the request again: a new one is started")
        kernel.reply_input(value)
        self._drop_prompt()
        if self._deadline is not None:
            self._deadline.go_on()

    def _follow(
        self,
        begin: Callable[[Callable[[Outcome], None], Listener | None], Execution],
        timeout: float | None,
        *first: Step,
    ) -> None:
        """Begin to wait for the outcome; `first` are steps of it before all others."""
        explained = functools.partial(self._services.memory.explained, mark=self._services.memory.mark())
        steps: tuple[Step, ...] = (*first, explained, written, self._ended, with_hint, self._services.late.into)
        listener = self._listen if self.job.cell.allow_stdin else self.job.listener
        try:
            execution = begin(lambda outcome: take(outcome, steps, self._finish, self._services.tasks), listener)
        except KernelBridgeError as exc:
            self._answer(exc)
            return
        if not self.answered:
            self._execution = execution
            if timeout is not None:
                self._deadline = Deadline(timeout, self._end_overdue, self._services.record.counts)

    def _listen(self, event: CellEvent) -> None:
        """Listen to a cell that may ask: its clock stops while it waits."""
        if self.answered or self.job.listener is None:
            return
        if isinstance(event, Asked):
            if self._escalation is not None:
                self._refuse_question(self._escalation)
                return
            if self._deadline is not None:
                self._deadline.stop()
            self._drop_prompt()
            self.prompt = Prompt(event)
            self._answer_by = Deadline(self._services.input_timeout, self._end_unanswered)
        self.job.listener(event)

    def _refuse_question(self, escalation: Escalation) -> None:
        """Answer a cell that asks although it is to end, a debugger say: there is no more input."""
        kernel = self._services.supervisor.kernel
        if kernel is not None and escalation.may_refuse():
            kernel.reply_input(END_OF_INPUT)

    def _drop_prompt(self) -> None:
        """Forget the question: it is answered, or the cell has ended or is interrupted. Idempotent."""
        self.prompt = None
        if self._answer_by is not None:
            self._answer_by.cancel()

    # -- its end ------------------------------------------------------------------

    def _ended(self, outcome: Outcome) -> Outcome:
        self._execution = None
        if self._deadline is not None:
            self._deadline.cancel()
        self._drop_prompt()
        if outcome.cause in {None, "interrupted"} and not outcome.state_preserved:
            self._services.supervisor.use_no_more()
        return outcome if self._escalation is None else self._escalation.finished(outcome)

    def _finish(self, outcome: Outcome) -> None:
        self._answer(outcome)
        self._services.go_on()

    def _answer(self, answer: Outcome | KernelBridgeError) -> None:
        self.answered = True
        self.job.answer(answer)
        self._services.record.ended()
        self._services.rested()

    def _never_interrupted(self) -> None:
        """Tell those who wanted to interrupt the cell that it has ended with its interpreter."""
        self._interrupts.tell("none", done=True, state_preserved=False)

    def _end_overdue(self) -> None:
        self._time_out(f"ExecutionTimeout: the cell ran longer than its limit of {self.job.timeout:g} s")

    def _end_unanswered(self) -> None:
        limit = self._services.input_timeout
        self._time_out(f"InputTimeout: nobody answered the cell's question within {limit:g} s")

    def _time_out(self, error: str) -> None:
        kernel = self._services.supervisor.kernel
        # A kernel that has just died ends its cell by itself.
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
        self._services.tasks.create(self._go_as_far_as_it_takes(self._escalation))

    async def _go_as_far_as_it_takes(self, escalation: Escalation) -> None:
        try:
            await escalation.run()
        finally:
            self._escalation = None
            self._services.go_on()
