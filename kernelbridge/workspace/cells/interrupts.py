"""How a running cell is ended: step by step, each of which is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from kernelbridge.errors import KernelBridgeError, LimitExceeded
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.execution import Execution, State
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.workspace.interrupt_progress import InterruptProgress, Step

log = structlog.get_logger(__name__)

MAX_REPORTS = 1000
"""Requests that may wait for the end of one cell."""
MAX_REFUSALS = 8
"""Questions of one cell that are refused while it is ended; a cell that asks again and again gets no more answers."""

Report = Callable[[InterruptProgress | KernelBridgeError], None]
"""Called with each step, or with the error that prevents further ones."""


class Reports:
    """The requests that wait for the end of one cell."""

    def __init__(self, report: Report | None = None, ended: int | None = None) -> None:
        """Begin with one request, or none; see `add`."""
        self._waiting = [] if report is None else [(report, ended)]
        self.finished = False
        """Whether the last step was reported; a request that is added now would get no answer."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, report: Report, ended: int | None = None) -> None:
        """Report the steps from now on to one more request, `ended` with the last. Raises `LimitExceeded`."""
        if len(self._waiting) >= MAX_REPORTS:
            raise LimitExceeded("Too many interrupts are under way in this session", "wait for their answers")
        self._waiting.append((report, ended))

    def send(self, step: Step, *, done: bool, state_preserved: bool | None = None) -> None:
        """Report one step."""
        self.finished = done
        for report, ended in self._waiting:
            report(InterruptProgress(step, done, state_preserved, ended if done else None))

    def fail(self, error: KernelBridgeError) -> None:
        """Report why there is no further step."""
        self.finished = True
        for report, _ in self._waiting:
            report(error)


@dataclass(frozen=True, slots=True)
class Graces:
    """Seconds that each step has to work."""

    sigint: float = 5.0
    process_group: float = 3.0
    lost_reply: float = 1.0
    """For the reply of a kernel that says that it is idle again."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a cell is ended, for its result."""

    cause: Literal["interrupted", "timeout"]
    error: str | None = None
    """None: the error with which the cell itself fails."""


class Escalation:
    """Ends one execution: by an interrupt, by SIGINT to the process group, and at last by a new kernel.

    Nothing may be submitted to the kernel before `run` returns, or an interrupt could hit the next cell.
    """

    def __init__(
        self,
        kernel: Kernel,
        execution: Execution,
        ending: Ending,
        reports: Reports,
        *,
        restart: Callable[[], Awaitable[object]],
        graces: Graces,
    ) -> None:
        self._kernel = kernel
        self._execution = execution
        self._ending = ending
        self._restart = restart
        self._graces = graces
        self.reports = reports
        self._step: Step = "sigint"
        self._ended = asyncio.Event()
        self._refused = 0

    def finished(self, outcome: Outcome) -> Outcome:
        """Report the end of the execution, and return its outcome with the cause of the end."""
        self._ended.set()
        if self._step == "kill":
            self._report(done=False)
        else:
            self._report(done=True, state_preserved=outcome.state_preserved)
        if outcome.success or outcome.cause not in {None, "interrupted", "kernel_died"}:
            return outcome
        error = self._ending.error or outcome.error
        if self._step == "kill":
            outcome = replace(outcome, signal=None)  # the signal was ours
        if self._ending.error is None and not outcome.state_preserved:
            error = "Interrupted: the cell did not stop, so its interpreter was ended; its variables are lost"
        return replace(outcome, cause=self._ending.cause, error=error)

    def may_refuse(self) -> bool:
        """Return whether to refuse a question that the cell asks meanwhile; see `MAX_REFUSALS`."""
        self._refused += 1
        return self._refused <= MAX_REFUSALS

    async def run(self) -> None:
        """Take as many steps as needed. Returns when no interrupt is under way any more."""
        steps: tuple[tuple[Step, Callable[[], Awaitable[None]], float], ...] = (
            ("sigint", self._kernel.interrupt, self._graces.sigint),
            ("process_group", self._kernel.interrupt_group, self._graces.process_group),
        )
        sent: set[asyncio.Task[None]] = set()
        try:
            for step, act, grace in steps:
                self._step = step
                sent.add(asyncio.get_running_loop().create_task(self._try(act)))
                if await self._ends_within(grace):
                    # The kernel must have received what was sent before it gets another cell.
                    await asyncio.wait(sent, timeout=grace)
                    return
                self._report(done=False)
            self._step = "kill"
            log.warning("kernel_killed", why="its cell ignored every interrupt")
            await self._kill()
        finally:
            for task in sent:
                task.cancel()
            await asyncio.gather(*sent, return_exceptions=True)

    async def _kill(self) -> None:
        try:
            await self._restart()
        except KernelBridgeError as exc:
            self.reports.fail(exc)
        else:
            self._step = "restart"
            self._report(done=True, state_preserved=False)

    async def _try(self, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        except KernelBridgeError as exc:
            log.warning("interrupt_failed", error=str(exc))

    async def _ends_within(self, grace: float) -> bool:
        """Wait for the execution's end, `grace` seconds at most; return whether it has ended.

        An interrupt may hit the kernel's own code after the cell: then the kernel is idle, and its reply is lost.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        idle = False
        while not self._ended.is_set() and (left := end - loop.time()) > 0:
            try:
                await asyncio.wait_for(self._ended.wait(), min(left, self._graces.lost_reply))
            except TimeoutError:
                if idle and self._execution.state is State.IDLE:
                    self._kernel.give_up(self._execution)
                idle = self._execution.state is State.IDLE
        return self._ended.is_set()

    def _report(self, *, done: bool, state_preserved: bool | None = None) -> None:
        self.reports.send(self._step, done=done, state_preserved=state_preserved)
