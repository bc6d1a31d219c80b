"""The execution lane: the queue of cells in front of a workspace's interpreter.

Cells run first-in first-out, one at a time. The queue is here and not in the kernel, so that a kernel's death costs
only the cell that ran: those behind it go to the next kernel. `run.py` is about the cell that runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from kernelbridge.aio.tasks import TaskSet, Wait
from kernelbridge.errors import KernelBridgeError, SessionClosed
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.end_causes import KERNEL_RESTARTED, SANDBOX_LOST_MEANWHILE, SESSION_CLOSED
from kernelbridge.jupyter.help import Help
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.adoption.session_state import RunningCell
from kernelbridge.workspace.cells.interrupts import Graces, Report
from kernelbridge.workspace.cells.kernel_supervisor import KernelSupervisor, StartKernel
from kernelbridge.workspace.cells.late_output import LateOutput
from kernelbridge.workspace.cells.prompts import Prompt, check_answer
from kernelbridge.workspace.cells.questions import CHARACTERS, Questions
from kernelbridge.workspace.cells.run import Job, Run, RunServices
from kernelbridge.workspace.denials import Denials
from kernelbridge.workspace.disk_watch import DiskStops
from kernelbridge.workspace.interrupt_progress import InterruptProgress
from kernelbridge.workspace.job_queue import JobQueue, run_timeout
from kernelbridge.workspace.resource_watch import MemoryWatch
from kernelbridge.workspace.states import KernelEvent, KernelState

T = TypeVar("T")

Warmed = Callable[[KernelBridgeError | None], None]
"""Called with None when the interpreter is ready, or with the error that prevents it."""


def _never_ran(cause: str, why: str) -> Outcome:
    return Outcome.ended(cause, f"{why} before the cell ran; it never ran")


NEVER_INTERRUPTED = _never_ran("interrupted", "Interrupted: the waiting cells were cancelled")
NEVER_RESTARTED = _never_ran("kernel_restarted", "KernelRestarted: the interpreter was restarted")
NEVER_CLOSED = Outcome.ended("session_closed", "SessionClosed: the session was closed before the cell ran")


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
        denials: Denials,
        disk_stops: DiskStops,
        record: Record,
        on_loss_reported: Callable[[], None] = lambda: None,
        longest: float | None = None,
        input_timeout: float | None = None,
        graces: Graces = Graces(),  # noqa: B008 - it is frozen
        observer: Callable[[KernelEvent], None] | None = None,
    ) -> None:
        """`longest` and `input_timeout` are in seconds, None without limit; `on_loss_reported` see `LateOutput`."""
        self._waiting = JobQueue[Job]("cells", requests=queue_limit, characters=CHARACTERS)
        self._longest = longest
        self._supervisor = KernelSupervisor(
            start_kernel,
            dependent=self,
            late=self.add_late_output,
            destroy_sandbox=destroy_sandbox,
            tasks=tasks,
            observer=observer,
        )
        self._questions = Questions(self._supervisor, tasks)
        self._late = LateOutput(on_loss_reported)
        memory.serve(busy=lambda: self.running is not None, tell_later=self.add_late_output)
        self._services = RunServices(
            supervisor=self._supervisor,
            record=record,
            memory=memory,
            denials=denials,
            disk_stops=disk_stops,
            late=self._late,
            tasks=tasks,
            graces=graces,
            input_timeout=input_timeout,
            on_answer=self._answered,
            start_next=self._pump,
        )
        self._warming: list[Warmed] = []
        self._run: Run | None = None
        """The cell that runs, or whose interrupt is still under way."""
        self._quiet = asyncio.Event()
        """Set when nothing runs, and nothing will."""
        self._closed = self._leaving = False
        self.on_rest: Callable[[], object] = lambda: None
        """Called when a cell was answered; another may begin at once."""

    @property
    def state(self) -> KernelState:
        """The kernel's state."""
        return self._supervisor.state

    @property
    def waiting(self) -> int:
        """How many cells wait."""
        return len(self._waiting)

    @property
    def in_hand(self) -> set[str]:
        """The ids of the requests whose cells run or wait."""
        own = None if self.running is None else self.running.job.request_id
        return self._waiting.request_ids | ({own} if own else set())

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or is ended, or the interpreter starts or ends."""
        asked = self._waiting or self._warming or self._questions.waiting
        runs = self._run is not None and not self._run.over
        return bool(runs or asked or self._supervisor.busy)

    @property
    def occupied(self) -> bool:
        """Whether a cell runs or waits."""
        return self.running is not None or len(self._waiting) > 0

    @property
    def running(self) -> Run | None:
        """The cell that runs and was not answered."""
        return None if self._run is None or self._run.answered else self._run

    @property
    def has_lost(self) -> bool:
        """Whether the session's end loses an interpreter, or a lost interpreter was not reported yet."""
        return self._supervisor.lived or self._late.lost is not None

    def was_lost(self, how: str) -> None:
        """Let the next result report how the interpreter of an earlier life of the session ended."""
        self._late.lost = how

    @property
    def prompt(self) -> Prompt | None:
        """The question of the running cell, while it waits for a line of input."""
        return None if self.running is None else self.running.prompt

    def submit(self, job: Job) -> None:
        """Queue a cell. Raises `BadRequest` if it may run too long, `LimitExceeded` or `SessionClosed`."""
        self._check_open()
        timeout = run_timeout(job.timeout, self._longest)
        if timeout != job.timeout:
            job = replace(job, timeout=timeout)
        self._waiting.put(job)
        self._pump()

    def warm(self, done: Warmed) -> None:
        """Start the interpreter without a cell; `done` is called once. Raises `SessionClosed`."""
        self._check_open()
        if self._supervisor.state is KernelState.READY:
            done(None)
            return
        self._warming.append(done)
        self._supervisor.need()

    def add_late_output(self, text: str) -> None:
        """Add a text to the late output of the next result."""
        self._late.add(text)

    def interrupt(
        self, report: Report, *, queued: bool = False, only: str | None = None, escalate: bool = True
    ) -> None:
        """Interrupt the running cell; `report` is called with each step. With `queued`, waiting cells are ended too.

        With `only`, the cell of that request is interrupted if it runs, ended if it waits, and no other is touched.
        Without `escalate`, a cell that catches the interrupt goes on.

        While the interpreter starts, the first waiting cell counts as running; while an interpreter is adopted, the
        cell in it, which is interrupted as soon as it is reached. Raises `LimitExceeded`.
        """
        if only is not None and (self.running is None or self.running.job.request_id != only):
            withdrawn = self._waiting.withdraw(only, NEVER_INTERRUPTED)
            report(InterruptProgress("none", done=True, state_preserved=self._late.lost is None, ended=withdrawn))
            return
        ended = self._waiting.end(NEVER_INTERRUPTED) if queued else None
        if self._run is not None and self._run.interrupt(report, ended, escalate=escalate):
            return
        if self.running is None and self._waiting and self._supervisor.kernel is None:
            ended = self._waiting.end(NEVER_INTERRUPTED, 1)
        preserved = self.running is None and self._late.lost is None
        report(InterruptProgress("none", done=True, state_preserved=preserved, ended=ended))

    def restart(self, done: Callable[[int | KernelBridgeError], None]) -> None:
        """Start a new interpreter; `done` is called with how many cells were ended for it, or with the error.

        Raises `LimitExceeded` or `SessionClosed`.
        """
        self._check_open()
        self._questions.take("")
        ended = self._waiting.end(NEVER_RESTARTED)
        if self.running is not None:
            ended += 1
        restarted = self._supervisor.restart()
        self._supervisor.end_pending(KERNEL_RESTARTED)

        async def count() -> int:
            await restarted
            return ended

        self._questions.answer(count(), done)

    def question(
        self, code: str, put: Callable[[Help], Awaitable[T]], done: Callable[[T | KernelBridgeError], None]
    ) -> None:
        """Ask a question about `code`, and start the interpreter for it; `done` is called with the answer.

        Raises `LimitExceeded` or `SessionClosed`.
        """
        self._check_open()
        self._questions.ask(code, put, done)

    def reply_input(self, value: str, input_id: str | None) -> None:
        """Answer the question of the running cell. Raises `NoInputWaiting`, `BadRequest` or `KernelError`."""
        check_answer(self.prompt, value, input_id)
        if self.running is not None:
            self.running.reply_input(value)

    def adopt(
        self, start: StartKernel | None, incarnation: int, lost: str | None, job: Job | None, cell: RunningCell | None
    ) -> Wait:
        """Continue with the interpreter of an earlier server, number `incarnation`, and with the cell in it.

        `start` adopts it, and the result waits for that; without `start` it is gone, and `lost` says how it ended.
        """
        self._late.lost = lost or self._late.lost
        if job is not None and cell is not None:
            self._run = Run(job, self._services, cell)
        self._supervisor.adopt(start, incarnation)
        if start is None:
            self._lose_unreached()
        return self._supervisor.reached

    def finish(self, *, leaving: bool = False) -> asyncio.Event:
        """Take no more cells, and end those that wait with cause `session_closed`.

        Returns an event that is set when nothing runs. With `leaving`, a cell of an earlier server that this one cannot
        reach is not answered: the next server will do that.
        """
        self._closed = True
        self._leaving = self._leaving or leaving
        self._warmed(SessionClosed())
        self._waiting.end(NEVER_CLOSED)
        if self.running is None:
            self._quiet.set()
        return self._quiet

    def end(self) -> None:
        """Take no more cells, and end all of them with cause `session_closed`. Idempotent; no I/O."""
        self.finish()
        self._supervisor.end()
        self._supervisor.end_pending(SESSION_CLOSED)
        self._fail_unreached(Outcome.ended("session_closed", SESSION_CLOSED.error))

    async def leave(self) -> None:
        """Leave the kernel and the cell in it, unanswered, to another server, after `finish`."""
        self._supervisor.end()
        await self._supervisor.leave()

    async def aclose(self) -> None:
        """End the kernel, after `end`. Idempotent."""
        self.end()
        await self._supervisor.aclose()

    # -- changes of the interpreter (`kernel_supervisor.Dependent`) ----------------------

    def interpreter_ready(self) -> None:
        """Run the cells that wait for it."""
        self._warmed(None)
        self._reach()
        self._pump()

    def interpreter_reached(self) -> None:
        """Get what the cell of an earlier server has written, before it is ended."""
        self._reach()

    def interpreter_failed(self, error: KernelBridgeError) -> None:
        """Answer all requests that wait for it."""
        self._fail_unreached(error)
        self._warmed(error)
        self._waiting.end(error)
        self.on_rest()

    def interpreter_gone(self, how: str) -> None:
        """Remember that its variables are lost, and continue in another."""
        self._late.lost = how
        self._lose_unreached()
        self._pump()
        if self._warming:
            self._supervisor.need()

    # -- the cell of an earlier server ------------------------------------------------

    def _reach(self) -> None:
        kernel = self._supervisor.adopted
        if self._run is not None and self._run.unreached and kernel is not None:
            self._run.adopt(kernel)

    def _lose_unreached(self) -> None:
        self._fail_unreached(Outcome.ended("sandbox_lost", SANDBOX_LOST_MEANWHILE.error))

    def _fail_unreached(self, outcome: Outcome | KernelBridgeError) -> None:
        if self._run is not None and self._run.unreached and not self._leaving:
            self._run.fail(outcome)

    # -- the queue ------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise SessionClosed

    def _warmed(self, error: KernelBridgeError | None) -> None:
        warming, self._warming = self._warming, []
        for done in warming:
            done(error)

    def _pump(self) -> None:
        """Start the next cell, if none runs."""
        if self._run is not None and self._run.over:
            self._run = None
        if self._run is not None or not self._waiting or self._closed:
            return
        kernel = self._supervisor.kernel
        if kernel is None:
            self._supervisor.need()
            return
        self._run = Run(self._waiting.next(), self._services)
        self._run.start(kernel)

    def _answered(self) -> None:
        if self._closed:
            self._quiet.set()
        self.on_rest()
