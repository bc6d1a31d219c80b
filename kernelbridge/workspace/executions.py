"""The execution lane: the queue of cells in front of a workspace's interpreter.

Cells run first-in first-out, one at a time. The queue is here and not in the kernel, so that a
kernel's death costs only the cell that ran: those behind it go to its successor.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from kernelbridge.errors import KernelBridgeError, KernelError
from kernelbridge.jupyter.endings import KERNEL_RESTARTED, SESSION_CLOSED
from kernelbridge.jupyter.events import Asked, CellEvent
from kernelbridge.jupyter.execution import Execution, Outcome
from kernelbridge.jupyter.help import Help
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.workspace.budget import WaitingBudget, run_timeout
from kernelbridge.workspace.deadline import Deadline
from kernelbridge.workspace.interpreter import Interpreter, StartKernel
from kernelbridge.workspace.interrupts import Ending, Escalation, Graces, Progress, Report
from kernelbridge.workspace.job import NEVER_CLOSED, NEVER_INTERRUPTED, NEVER_RESTARTED, Job
from kernelbridge.workspace.late import LateOutput, variables_lost
from kernelbridge.workspace.lifecycle import KernelEvent, KernelState
from kernelbridge.workspace.located import located
from kernelbridge.workspace.memory import MemoryWatch
from kernelbridge.workspace.prompts import Prompt, Prompts
from kernelbridge.workspace.tasks import TaskSet

T = TypeVar("T")

WAITING_CHARACTERS = 32 << 20
"""Length of the code that may wait in a session: requests are few or small."""
END_OF_INPUT = "\x04"
"""What a kernel takes for the end of its input."""
QUESTIONS = 64
"""Questions about code, and restarts, that may wait in a session."""

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
        longest: float | None = None,
        input_timeout: float | None = None,
        graces: Graces = Graces(),  # noqa: B008 - it is frozen
        observer: Callable[[KernelEvent], None] | None = None,
    ) -> None:
        self._budget = WaitingBudget("cells", requests=queue_limit, characters=WAITING_CHARACTERS)
        self._questions = WaitingBudget("questions", requests=QUESTIONS, characters=WAITING_CHARACTERS)
        self._tasks = tasks
        self._memory = memory
        memory.serve(busy=lambda: self._running is not None, tell_later=self.tell)
        self._graces = graces
        self._longest = longest
        self._input_timeout = input_timeout
        self._prompts = Prompts(limit=input_timeout, unanswered=self._end_unanswered)
        self._interpreter = Interpreter(
            start_kernel,
            dependent=self,
            late=self.tell,
            destroy_sandbox=destroy_sandbox,
            tasks=tasks,
            observer=observer,
        )
        self._waiting: deque[Job] = deque()
        self._warming: list[Warmed] = []
        self._running: Job | None = None
        self._execution: Execution | None = None
        self._since: float | None = None
        self._deadline: Deadline | None = None
        self._escalation: Escalation | None = None
        self._lost: str | None = None
        """How the interpreter ended that earlier cells ran in, until that has been told."""
        self._late = LateOutput()
        self._closed = False

    @property
    def state(self) -> KernelState:
        """The kernel's state."""
        return self._interpreter.state

    @property
    def waiting(self) -> int:
        """How many cells wait."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or is ended, or the interpreter is on its way."""
        asked = self._waiting or self._warming or self._questions.waiting
        return bool(self._running or self._escalation or asked or self._interpreter.busy)

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
        self._budget.take(job.cell.code)
        self._waiting.append(job)
        self._pump()

    def warm(self, done: Warmed) -> None:
        """Have a kernel without running a cell; `done` is called once, with None or the error that prevented it."""
        self._check_open()
        if self._interpreter.state is KernelState.READY:
            done(None)
            return
        self._warming.append(done)
        self._interpreter.need()

    def tell(self, text: str) -> None:
        """Put a text into the next result's late output."""
        self._late.add(text)

    def interrupt(self, report: Report, *, queued: bool = False) -> None:
        """Interrupt what runs; `report` is told of each step. With `queued`, what waits is ended too.

        While the interpreter starts, the first cell that waits for it is what is meant. Raises `LimitExceeded`.
        """
        ended = self._end_waiting(NEVER_INTERRUPTED) if queued else None
        kernel = self._interpreter.kernel
        if self._escalation is not None:
            self._escalation.join(report, ended)
        elif self._running is not None and kernel is not None:
            self._escalate(kernel, Ending("interrupted"), report, ended)
        else:
            if self._waiting and kernel is None:
                ended = self._end_waiting(NEVER_INTERRUPTED, 1)
            preserved = self._running is None and self._lost is None
            report(Progress("none", done=True, state_preserved=preserved, ended=ended))

    def restart(self, done: Callable[[int | KernelBridgeError], None]) -> None:
        """Have a new interpreter; `done` is called with how many cells were ended for it, or why there is none.

        Raises `LimitExceeded` or `KernelError`.
        """
        self._check_open()
        self._questions.take("")
        ended = self._end_waiting(NEVER_RESTARTED)
        if self._running is not None:
            ended += 1
        restarted = self._interpreter.restart()
        self._interpreter.end_pending(KERNEL_RESTARTED)
        self._tasks.create(self._answer_question(_then(restarted, ended), done, ""))

    def question(
        self, code: str, put: Callable[[Help], Awaitable[T]], done: Callable[[T | KernelBridgeError], None]
    ) -> None:
        """Put a question about `code`; the interpreter is started if need be. `done` is called with the answer.

        Raises `LimitExceeded` or `KernelError`.
        """
        self._check_open()
        self._questions.take(code)
        self._tasks.create(self._answer_question(self._put(put), done, code))

    async def _put(self, put: Callable[[Help], Awaitable[T]]) -> T:
        kernel = await self._interpreter.ready()
        return await put(kernel.help)

    async def _answer_question(
        self, work: Awaitable[T], done: Callable[[T | KernelBridgeError], None], code: str
    ) -> None:
        answer: T | KernelBridgeError
        try:
            answer = await work
        except KernelBridgeError as exc:
            answer = exc
        finally:
            self._questions.release(code)
        done(answer)

    def reply_input(self, value: str, input_id: str | None) -> None:
        """Answer what the running cell asks. Raises `NoInputWaiting`, `BadRequest` or `KernelError`."""
        self._prompts.check(value, input_id)
        kernel = self._interpreter.kernel
        if kernel is None:
            raise KernelError("The kernel is dead", "send the request again: a new one is started")
        kernel.reply_input(value)
        self._prompts.drop()
        if self._deadline is not None:
            self._deadline.go_on()

    def end(self) -> None:
        """End every cell with cause `session_closed` and take no more. Idempotent; no I/O."""
        self._closed = True
        self._warmed(KernelError("The session was closed", "send the request again to open it anew"))
        self._interpreter.end()
        self._interpreter.end_pending(SESSION_CLOSED)
        self._end_waiting(NEVER_CLOSED)

    async def aclose(self) -> None:
        """End the kernel, after `end`. Idempotent."""
        self.end()
        await self._interpreter.aclose()

    # -- what the interpreter tells (`interpreter.Dependent`) ----------------------

    def interpreter_ready(self) -> None:
        """Go on with the cells that wait for it."""
        self._warmed(None)
        self._pump()

    def interpreter_failed(self, error: KernelBridgeError) -> None:
        """Answer everybody who waits for it."""
        self._warmed(error)
        self._end_waiting(error)

    def interpreter_gone(self, how: str) -> None:
        """Remember that its variables are lost, and go on in another."""
        self._lost = how
        self._pump()

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
        kernel = self._interpreter.kernel
        if kernel is None:
            self._interpreter.need()
            return
        job = self._waiting.popleft()
        self._budget.release(job.cell.code)
        self._run(kernel, job)

    def _run(self, kernel: Kernel, job: Job) -> None:
        self._running, self._since = job, time.time()
        try:
            listener = self._listen if job.cell.allow_stdin else job.listener
            done = self._memory.over_cell(located(self._finished, self._tasks))
            execution = kernel.submit(job.cell, done, listener)
        except KernelBridgeError as exc:
            self._running = None
            job.answer(exc)
            return
        if self._running is job:
            self._execution = execution
            if job.timeout is not None:
                self._deadline = Deadline(job.timeout, self._end_overdue)

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
        if self._escalation is not None:
            outcome = self._escalation.finished(outcome)
        if outcome.cause is None and not outcome.state_preserved:
            self._interpreter.leave()
        job.answer(self._with_news(outcome))
        self._pump()

    def _with_news(self, outcome: Outcome) -> Outcome:
        """Add what has happened since the last result."""
        late = self._late.take()
        ended_by_itself = outcome.cause is None or (outcome.cause == "out_of_memory" and outcome.state_preserved)
        if self._lost is not None and ended_by_itself:
            late = variables_lost(self._lost) + late
            outcome = replace(outcome, state_preserved=False)
            self._lost = None
        return replace(outcome, late_output=late) if late else outcome

    def _end_waiting(self, answer: Outcome | KernelBridgeError, limit: int | None = None) -> int:
        """Answer those that wait, the first `limit` of them, without running them; give how many."""
        count = len(self._waiting) if limit is None else min(limit, len(self._waiting))
        ended = [self._waiting.popleft() for _ in range(count)]
        for job in ended:
            self._budget.release(job.cell.code)
        for job in ended:
            job.answer(answer)
        return count

    # -- the end of what runs ---------------------------------------------------------

    def _end_overdue(self) -> None:
        if self._running is not None:
            limit = self._running.timeout
            self._time_out(f"ExecutionTimeout: the cell ran longer than its limit of {limit:g} s")

    def _end_unanswered(self) -> None:
        self._time_out(f"InputTimeout: nobody answered the cell's question within {self._input_timeout:g} s")

    def _time_out(self, error: str) -> None:
        kernel = self._interpreter.kernel
        # A kernel that has just died ends its cell by itself.
        if self._escalation is None and self._running is not None and kernel is not None:
            self._escalate(kernel, Ending("timeout", error), self._running.report)

    def _escalate(self, kernel: Kernel, ending: Ending, report: Report | None, ended: int | None = None) -> None:
        if self._execution is None:
            raise AssertionError("nothing runs")
        if self._deadline is not None:
            self._deadline.cancel()
        if self._prompts.waiting is not None:
            self._withdraw_question()
        restart = self._interpreter.restart
        self._escalation = Escalation(kernel, self._execution, ending, restart=restart, graces=self._graces)
        if report is not None:
            self._escalation.join(report, ended)
        self._tasks.create(self._go_as_far_as_it_takes(self._escalation))

    async def _go_as_far_as_it_takes(self, escalation: Escalation) -> None:
        try:
            await escalation.run()
        finally:
            self._escalation = None
            self._pump()

    def _refuse_question(self, escalation: Escalation) -> None:
        """Answer a cell that asks although it is to end, a debugger say: there is no more input."""
        kernel = self._interpreter.kernel
        if kernel is not None and escalation.may_refuse():
            kernel.reply_input(END_OF_INPUT)

    def _withdraw_question(self) -> None:
        self._prompts.drop()
        if (kernel := self._interpreter.kernel) is not None:
            kernel.withdraw_question()


async def _then(event: Awaitable[object], value: T) -> T:
    await event
    return value
