"""Pausing a workspace's sandbox when it is idle, and resuming it for the next message.

A pause stops every process in the sandbox and keeps its memory. This module decides on it, the runtime performs it.
A message that arrives meanwhile waits in `awake` until everything runs again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace.states import Machine, WorkspaceAction, WorkspaceEvent, WorkspaceState

log = structlog.get_logger(__name__)

ASLEEP = frozenset({WorkspaceState.PAUSING, WorkspaceState.PAUSED, WorkspaceState.RESUMING})


class Pausing:
    """The pauses of one workspace."""

    def __init__(
        self,
        machine: Machine[WorkspaceState, WorkspaceEvent, WorkspaceAction],
        current: Callable[[], Sandbox | None],
        *,
        idle_timeout: float | None,
        busy: Callable[[], bool],
        tasks: TaskSet,
    ) -> None:
        """Pause nothing yet.

        `current` returns the sandbox; `idle_timeout` is in seconds, None for never; `busy` says whether anything runs
        that a client waits for.
        """
        self._machine = machine
        self._current = current
        self._idle_timeout = idle_timeout
        self._used_at = 0.0
        """When the session was used last: a message or an answer, or something that ran."""
        self._busy = busy
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def asleep(self) -> bool:
        """Whether the sandbox is paused, being paused or being resumed."""
        return self._machine.state in ASLEEP

    def began(self) -> None:
        """Begin to count for a sandbox that has started."""
        self._count()

    def ended(self) -> None:
        """Release the messages that wait for the sandbox: it has ended, or is about to. Idempotent."""
        self._stop_counting()
        self._answer(None)

    def touch(self) -> None:
        """Restart the idle time: a client uses the session."""
        self._used_at = self._loop.time()

    def wake(self) -> None:
        """Resume the sandbox if it is paused, or as soon as the pause under way is complete."""
        if self._machine.state in {WorkspaceState.PAUSING, WorkspaceState.PAUSED}:
            self._do(self._machine.on(WorkspaceEvent.NEED))

    async def awake(self) -> None:
        """Resume a paused sandbox, and wait until it runs or has ended. Raises the error if it cannot be resumed."""
        if self.asleep:
            self.wake()
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    # -- what happens -----------------------------------------------------------

    def _count(self) -> None:
        """Start the idle time."""
        self._stop_counting()
        self.touch()
        self._look()

    def _stop_counting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._idle_timeout is None or self._machine.state is not WorkspaceState.ACTIVE:
            return
        if self._busy():
            self.touch()
        left = self._used_at + self._idle_timeout - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._do(self._machine.on(WorkspaceEvent.IDLE))

    def _do(self, action: WorkspaceAction) -> None:
        sandbox = self._current()
        if sandbox is None:
            return
        if action is WorkspaceAction.PAUSE:
            self._tasks.create(self._pause(sandbox))
        elif action is WorkspaceAction.RESUME:
            self._tasks.create(self._resume(sandbox))

    async def _pause(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.pause()
        except KernelBridgeError as exc:
            log.warning("not_paused", sandbox=sandbox.id, error=str(exc))
            self._report(sandbox, WorkspaceEvent.PAUSE_FAILED)
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
        if self._current() is not sandbox:
            return  # it has ended meanwhile, or is about to
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
