"""Pausing a workspace's sandbox when it is idle, and resuming it for the next message.

A pause stops every process in the sandbox; what they have in memory stays there. It is decided here and carried out by
the runtime. Messages may come meanwhile: `awake` keeps each from the sandbox until everything runs again.
Somebody else may pause a sandbox, too (`docker pause`): that is told like a pause of ours, and undone by the next
message, or at once if something runs in it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import structlog

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, RuntimeUnavailable
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace.states import Machine, WorkspaceAction, WorkspaceEvent, WorkspaceState

log = structlog.get_logger(__name__)

ASLEEP = frozenset({WorkspaceState.PAUSING, WorkspaceState.PAUSED, WorkspaceState.RESUMING})


class Pausing:
    """The pauses of one workspace."""

    def __init__(
        self,
        machine: Machine[WorkspaceState, WorkspaceEvent, WorkspaceAction],
        *,
        idle_timeout: float | None,
        busy: Callable[[], bool],
        tasks: TaskSet,
    ) -> None:
        """`busy` says whether anything runs that somebody waits for; `idle_timeout` is in seconds, None for never."""
        self._machine = machine
        self._clock = None if idle_timeout is None else IdleClock(idle_timeout)
        self._busy = busy
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._sandbox: Sandbox | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def asleep(self) -> bool:
        """Whether the sandbox stands still, or is about to, or does not run again yet."""
        return self._machine.state in ASLEEP

    def began(self, sandbox: Sandbox) -> None:
        """Take note that a sandbox runs."""
        self._sandbox = sandbox
        sandbox.watch_pauses(functools.partial(self._by_somebody, sandbox))
        self._count()

    def ended(self) -> None:
        """Take note that it is gone, or is being destroyed: who waits for it need not wait any more. Idempotent."""
        self._sandbox = None
        self._stop_counting()
        self._answer(None)

    def touch(self) -> None:
        """Take note that somebody uses the session."""
        if self._clock is not None:
            self._clock.touch(self._loop.time())

    def wake(self) -> None:
        """Resume the sandbox if it is paused, or as soon as it is."""
        if self._machine.state in {WorkspaceState.PAUSING, WorkspaceState.PAUSED}:
            self._do(self._machine.on(WorkspaceEvent.NEED))

    async def awake(self) -> None:
        """Wait until a sandbox that is paused runs again, or is gone. Raises the error that keeps it from that."""
        if self.asleep:
            self.wake()
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    # -- what happens -----------------------------------------------------------

    def _count(self) -> None:
        """Begin to count anew."""
        self._stop_counting()
        if self._clock is not None:
            self.touch()
            self._look()

    def _stop_counting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._clock is None or self._machine.state is not WorkspaceState.ACTIVE:
            return
        left = self._clock.left(self._loop.time(), busy=self._busy())
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._do(self._machine.on(WorkspaceEvent.IDLE))

    def _by_somebody(self, sandbox: Sandbox, paused: bool) -> None:  # noqa: FBT001 - what `watch_pauses` tells
        if self._sandbox is not sandbox:
            return
        if paused and self._machine.state is WorkspaceState.ACTIVE:
            self._report(sandbox, WorkspaceEvent.PAUSED)
        if paused and self._busy():
            self.wake()
        if not paused and self._machine.state is WorkspaceState.PAUSED:
            self._report(sandbox, WorkspaceEvent.RESUMED)

    def _do(self, action: WorkspaceAction) -> None:
        if self._sandbox is None:
            return
        if action is WorkspaceAction.PAUSE:
            self._tasks.create(self._pause(self._sandbox))
        elif action is WorkspaceAction.RESUME:
            self._tasks.create(self._resume(self._sandbox))

    async def _pause(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.pause()
        except KernelBridgeError as exc:
            log.warning("not_paused", sandbox=sandbox.id, error=str(exc))
            self._report(sandbox, WorkspaceEvent.PAUSE_FAILED)
            if isinstance(exc, RuntimeUnavailable):
                self._answer(exc)  # who waits has waited as long as for a resume; that is tried all the same
        else:
            self._report(sandbox, WorkspaceEvent.PAUSED)

    async def _resume(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.resume()
        except KernelBridgeError as exc:
            log.warning("not_resumed", sandbox=sandbox.id, error=str(exc))
            self._report(sandbox, WorkspaceEvent.RESUME_FAILED)
            self._answer(exc)
        else:
            self._report(sandbox, WorkspaceEvent.RESUMED)

    def _report(self, sandbox: Sandbox, event: WorkspaceEvent) -> None:
        if self._sandbox is not sandbox:
            return  # it has ended meanwhile, or its session does
        self._do(self._machine.on(event))
        if self._machine.state is WorkspaceState.ACTIVE:
            self._count()
            self._answer(None)

    def _answer(self, error: KernelBridgeError | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


class IdleClock:
    """Counts from the last message, the last answer, or the last look at something that ran. Times in seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._since = 0.0

    def touch(self, now: float) -> None:
        """Take note that somebody uses the session."""
        self._since = now

    def left(self, now: float, *, busy: bool) -> float:
        """Say how long it may still be idle: nothing or less if it has been for long enough."""
        if busy:
            self._since = now
        return self._since + self._limit - now
