"""The execution lane: a workspace's kernel and the queue of cells in front of it.

Cells run first-in first-out, one at a time. The queue is here and not in the kernel, so that a
kernel's death costs only the cell that ran: those behind it go to its successor.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from kernelbridge.errors import KernelBridgeError, KernelError
from kernelbridge.jupyter.bounded import Overflow, Spilled
from kernelbridge.jupyter.events import Listener
from kernelbridge.jupyter.execution import Cell, Outcome
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.base import ExitStatus
from kernelbridge.workspace.budget import WaitingBudget
from kernelbridge.workspace.lifecycle import KERNEL, KernelAction, KernelEvent, KernelState, Machine
from kernelbridge.workspace.tasks import TaskSet

log = structlog.get_logger(__name__)

WAITING_CHARACTERS = 32 << 20
"""Length of the code that may wait in a session: requests are few or small."""
INTERRUPT_GRACE = 5.0
"""Seconds that a cell past its time limit has to end after the interrupt, before its kernel is killed."""
KILL_GRACE = 5.0
"""Seconds in which a killed kernel has to be gone, before its sandbox is destroyed."""
EXIT_GRACE = 5.0
"""Seconds that a kernel has to end by itself after a cell called `exit()`."""
LATE_OUTPUT_LIMIT = 1 << 20
"""Characters of background threads' output that are kept until the next result."""

ExecutionDone = Callable[[Outcome | KernelBridgeError], None]
Warmed = Callable[[KernelBridgeError | None], None]
StartKernel = Callable[[int, Callable[[str], None]], Awaitable[Kernel]]
"""Start incarnation n; the second argument takes late output."""


@dataclass(frozen=True, slots=True)
class _Job:
    cell: Cell
    timeout: float | None
    done: ExecutionDone
    listener: Listener | None


class ExecutionLane:
    """Runs the cells of one workspace."""

    def __init__(
        self,
        start_kernel: StartKernel,
        *,
        destroy_sandbox: Callable[[], Awaitable[None]],
        queue_limit: int,
        tasks: TaskSet,
        observer: Callable[[KernelEvent], None] | None = None,
    ) -> None:
        self._start_kernel = start_kernel
        self._destroy_sandbox = destroy_sandbox
        self._budget = WaitingBudget("cells", requests=queue_limit, characters=WAITING_CHARACTERS)
        self._tasks = tasks
        self._machine = Machine(KERNEL, KernelState.ABSENT, observer)
        self._waiting: deque[_Job] = deque()
        self._warming: list[Warmed] = []
        self._running: _Job | None = None
        self._since: float | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._timed_out = False
        self._kernel: Kernel | None = None
        self._incarnation = 0
        self._variables_lost = False
        self._leaving: asyncio.TimerHandle | None = None
        self._late: list[str] = []
        self._late_size = 0
        self._closed = False

    @property
    def state(self) -> KernelState:
        """The kernel's state."""
        return self._machine.state

    @property
    def waiting(self) -> int:
        """How many cells wait."""
        return len(self._waiting)

    @property
    def running_since(self) -> float | None:
        """When the running cell began, in seconds since the epoch; None while none runs."""
        return None if self._running is None else self._since

    def warm(self, done: Warmed) -> None:
        """Have a kernel without running a cell; `done` is called once, with None or the error that prevented it."""
        if self._closed:
            raise KernelError("The session is closed", "send the request again to open it anew")
        if self._machine.state is KernelState.READY:
            done(None)
            return
        self._warming.append(done)
        self._pump()

    def _warmed(self, error: KernelBridgeError | None) -> None:
        warming, self._warming = self._warming, []
        for done in warming:
            done(error)

    def submit(self, cell: Cell, timeout: float | None, done: ExecutionDone, listener: Listener | None = None) -> None:
        """Queue a cell; `done` is called once, with its outcome or the error that kept it from running."""
        if self._closed:
            raise KernelError("The session is closed", "send the request again to open it anew")
        self._budget.take(cell.code)
        self._waiting.append(_Job(cell, timeout, done, listener))
        self._pump()

    def tell(self, text: str) -> None:
        """Put a text into the next result's late output."""
        self._take_late(text)

    def end(self) -> None:
        """End every cell with cause `session_closed` and take no more. Idempotent; no I/O."""
        self._closed = True
        self._warmed(KernelError("The session was closed", "send the request again to open it anew"))
        if self._kernel is not None:
            self._kernel.end_pending("session_closed")
        for job in self._take_waiting():
            _answer(job, Outcome.ended("session_closed", "SessionClosed: the session was closed before the cell ran"))

    async def aclose(self) -> None:
        """End the kernel, after `end`. Idempotent."""
        self.end()
        if self._kernel is not None:
            await self._kernel.aclose()

    def _pump(self) -> None:
        if self._running is not None or not (self._waiting or self._warming) or self._closed:
            return
        match self._machine.state:
            case KernelState.READY:
                # A kernel that has just died, or is about to, is still READY here; its watcher pumps again.
                if self._waiting and self._kernel is not None and self._kernel.alive and self._leaving is None:
                    job = self._waiting.popleft()
                    self._budget.release(job.cell.code)
                    self._run(self._kernel, job)
            case KernelState.ABSENT | KernelState.DEAD:
                if self._machine.on(KernelEvent.NEED) is KernelAction.START:
                    self._tasks.create(self._start())
            case KernelState.STARTING | KernelState.RESTARTING:
                pass  # STARTED or START_FAILED comes and goes on from here

    def _run(self, kernel: Kernel, job: _Job) -> None:
        self._running, self._since = job, time.time()
        try:
            kernel.submit(job.cell, self._finished, job.listener)
        except KernelBridgeError as exc:
            self._running = None
            _answer(job, exc)
            return
        if job.timeout is not None:
            self._deadline = asyncio.get_running_loop().call_later(job.timeout, self._end_overdue, kernel)

    def _finished(self, outcome: Outcome) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if outcome.overflow is None:
            self._conclude(outcome)
        else:
            # The cell counts as running until its whole output is on disk: answers come in the order of the cells.
            self._tasks.create(self._locate_output(outcome, outcome.overflow))

    async def _locate_output(self, outcome: Outcome, overflow: Overflow) -> None:
        spilled = Spilled(None, complete=False)
        try:
            spilled = await overflow.finish()
        finally:
            truncated = outcome.truncated
            if truncated is not None and spilled.path is not None:
                truncated = {**truncated, "file": spilled.path, "fileComplete": spilled.complete}
            self._conclude(replace(outcome, overflow=None, truncated=truncated))

    def _conclude(self, outcome: Outcome) -> None:
        job, self._running = self._running, None
        if job is None:
            raise AssertionError("an outcome without a running cell")
        if self._timed_out:
            self._timed_out = False
            if not outcome.success:
                outcome = replace(
                    outcome,
                    cause="timeout",
                    error=f"ExecutionTimeout: the cell ran longer than its limit of {job.timeout:g} s",
                )
        if outcome.cause is None and not outcome.state_preserved:
            self._leave()
        if self._variables_lost and outcome.cause is None:
            outcome = replace(outcome, state_preserved=False)
        self._variables_lost = self._variables_lost and outcome.cause is not None
        if self._late:
            outcome = replace(outcome, late_output="".join(self._late))
            self._late, self._late_size = [], 0
        _answer(job, outcome)
        self._pump()

    async def _start(self) -> None:
        self._incarnation += 1
        try:
            kernel = await self._start_kernel(self._incarnation, self._take_late)
        except KernelBridgeError as exc:
            log.warning("kernel_start_failed", error=str(exc))
            self._fail_waiting(exc)
            return
        except Exception as exc:
            log.exception("kernel_start_failed")
            self._fail_waiting(KernelError("The kernel could not be started", f"{type(exc).__name__}: {exc}"))
            return
        if self._closed:
            await kernel.aclose()
            return
        self._kernel = kernel
        self._machine.on(KernelEvent.STARTED)
        self._tasks.create(self._watch(kernel))
        self._warmed(None)
        self._pump()

    def _fail_waiting(self, error: KernelBridgeError) -> None:
        self._machine.on(KernelEvent.START_FAILED)
        self._warmed(error)
        for job in self._take_waiting():
            _answer(job, error)

    def _take_waiting(self) -> deque[_Job]:
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            self._budget.release(job.cell.code)
        return waiting

    async def _watch(self, kernel: Kernel) -> None:
        """Wait for the kernel's end; its running cell has been ended by it then."""
        status: ExitStatus = await kernel.died
        if not self._closed:
            log.warning("kernel_died", status=str(status), incarnation=self._incarnation)
        try:
            await kernel.aclose()
        finally:
            self._kernel = None
            self._variables_lost = True
            self._machine.on(KernelEvent.DIED)
            if self._leaving is not None:
                self._leaving.cancel()
                self._leaving = None
            self._pump()

    def _leave(self) -> None:
        """Give the kernel no more cells: one of them called `exit()`, and it is about to end."""
        kernel = self._kernel
        if kernel is not None:
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(EXIT_GRACE, lambda: self._tasks.create(self._kill(kernel)))

    def _end_overdue(self, kernel: Kernel) -> None:
        """Interrupt the running cell, which is past its limit; if that does not end it, its kernel is killed."""
        self._timed_out = True
        # Armed before the interrupt is tried: a sandbox that is up to no good may not take it.
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(INTERRUPT_GRACE, lambda: self._tasks.create(self._kill(kernel)))
        self._tasks.create(self._interrupt(kernel))

    async def _interrupt(self, kernel: Kernel) -> None:
        try:
            await kernel.interrupt()
        except KernelBridgeError as exc:
            log.warning("interrupt_failed", error=str(exc))

    async def _kill(self, kernel: Kernel) -> None:
        """Kill a kernel that does not end; if that does not help either, its sandbox goes."""
        log.warning("kernel_killed", why="it ignored an interrupt, or did not exit")
        try:
            await kernel.kill()
            await asyncio.wait_for(asyncio.shield(kernel.died), KILL_GRACE)
        except (KernelBridgeError, TimeoutError) as exc:
            log.warning("sandbox_given_up", why="its kernel could not be killed", error=str(exc))
            await self._destroy_sandbox()

    def _take_late(self, text: str) -> None:
        room = LATE_OUTPUT_LIMIT - self._late_size
        if room < 0:
            return  # said already
        self._late.append(text[:room])
        self._late_size += len(text)
        if len(text) > room:
            self._late.append("\n[more output of background threads was left out here]\n")


def _answer(job: _Job, outcome: Outcome | KernelBridgeError) -> None:
    try:
        job.done(outcome)
    except Exception:
        # Whoever asked cannot take the answer; the cells behind it must run all the same.
        log.exception("answer_failed")
