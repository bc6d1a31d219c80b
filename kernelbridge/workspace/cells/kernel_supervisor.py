"""The life of a workspace's kernel: started, watched, restarted. At most one exists at a time.

`lane.py` decides what runs in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog

from kernelbridge.aio.tasks import TaskSet, attempt
from kernelbridge.errors import KernelBridgeError, KernelError, SessionClosed
from kernelbridge.jupyter.adopted import AdoptedKernel
from kernelbridge.jupyter.end_causes import KERNEL_RESTARTED, Ended
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.contract import ExitStatus
from kernelbridge.workspace.states import KERNEL, KernelAction, KernelEvent, KernelState, Machine

log = structlog.get_logger(__name__)

KILL_GRACE = 5.0
"""Seconds in which a killed kernel must have ended, before its sandbox is destroyed."""
EXIT_GRACE = 5.0
"""Seconds that a kernel has to end by itself after a cell called `exit()`."""
CATCH_UP = 2.0
"""Seconds for an adopted kernel to send the output that its cell has written so far, before the kernel is ended."""

StartKernel = Callable[[int, Callable[[str], None]], Awaitable[Kernel]]
"""Start incarnation n; the second argument is called with late output."""


class Dependent(Protocol):
    """Is called when the interpreter's state changes."""

    def interpreter_ready(self) -> None:
        """React to an interpreter that can be used now."""
        ...

    def interpreter_reached(self) -> None:
        """React to an adopted interpreter that is connected, and will be ended because of a restart."""
        ...

    def interpreter_failed(self, error: KernelBridgeError) -> None:
        """React to an interpreter that could not be started."""
        ...

    def interpreter_gone(self, how: str) -> None:
        """React to an interpreter that has ended, with its variables; what ran in it was answered before."""
        ...


class KernelSupervisor:
    """The life of one workspace's kernel."""

    def __init__(
        self,
        start_kernel: StartKernel,
        *,
        dependent: Dependent,
        late: Callable[[str], None],
        destroy_sandbox: Callable[[], Awaitable[None]],
        tasks: TaskSet,
        observer: Callable[[KernelEvent], None] | None = None,
    ) -> None:
        self._start_kernel = start_kernel
        self._dependent = dependent
        self._late = late
        self._destroy_sandbox = destroy_sandbox
        self._tasks = tasks
        self._machine = Machine(KERNEL, KernelState.ABSENT, observer)
        self._kernel: Kernel | None = None
        self._incarnation = 0
        self._waiters: list[asyncio.Future[Kernel]] = []
        self._leaving: asyncio.TimerHandle | None = None
        """Kills a kernel that was told to exit and does not; the kernel is not used meanwhile."""
        self._adopting: asyncio.Task[None] | None = None
        self._closed = False
        self.lived = False
        """Whether there has ever been a kernel."""

    @property
    def state(self) -> KernelState:
        """The state of its life."""
        return self._machine.state

    @property
    def kernel(self) -> Kernel | None:
        """The kernel, if it can be used now. A kernel that has just died, or is about to, is still READY."""
        usable = self._machine.state is KernelState.READY and self._leaving is None
        return self._kernel if usable and self._kernel is not None and self._kernel.alive else None

    @property
    def adopted(self) -> AdoptedKernel | None:
        """The kernel, if an earlier server has started it; it may have ended."""
        return self._kernel if isinstance(self._kernel, AdoptedKernel) else None

    @property
    def busy(self) -> bool:
        """Whether the kernel starts or ends, or a request waits for it."""
        at_rest = self._machine.state in {KernelState.ABSENT, KernelState.READY, KernelState.DEAD}
        return not at_rest or self._leaving is not None or bool(self._waiters)

    def need(self) -> None:
        """Start the kernel if it does not run."""
        if not self._closed and self._machine.state in {KernelState.ABSENT, KernelState.DEAD}:
            self._do(self._machine.on(KernelEvent.NEED))

    async def ready(self) -> Kernel:
        """Return the kernel when it can be used; it is started if necessary. Raises `KernelBridgeError`."""
        kernel = self.kernel
        if kernel is not None:
            return kernel
        if self._closed:
            raise SessionClosed
        waiter = self._waiter()
        self.need()
        return await waiter

    def restart(self) -> asyncio.Future[Kernel]:
        """End the kernel, which is not used from now on, and start another. A kernel that is starting is new enough.

        The result is the new kernel, or the `KernelBridgeError` that says why there is none. Raises `SessionClosed`.
        """
        if self._closed:
            raise SessionClosed
        waiter = self._waiter()  # before the event: a kernel that is starting may be ready at once
        self._do(self._machine.on(KernelEvent.RESTART))
        return waiter

    def adopt(self, start: StartKernel | None, incarnation: int) -> None:
        """Adopt the kernel of an earlier server by `start`; without it there is none any more."""
        self._incarnation = incarnation
        if start is not None and self._machine.on(KernelEvent.ADOPT) is KernelAction.ADOPT:
            self.lived = True
            self._adopting = self._tasks.create(self._adopt(start, incarnation))

    async def reached(self) -> None:
        """Wait until the kernel of `adopt` has sent its earlier output, or cannot be reached."""
        if self._adopting is not None:
            await asyncio.wait({self._adopting})
        if self.adopted is not None:
            await self.adopted.catch_up(CATCH_UP)

    def use_no_more(self) -> None:
        """Stop using the kernel: one of its cells called `exit()`, and it is about to end."""
        kernel = self._kernel
        if kernel is not None and self._leaving is None:
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(EXIT_GRACE, lambda: self._tasks.create(self._kill(kernel)))

    def end_pending(self, why: Ended) -> None:
        """End the execution that runs in it, without waiting for the kernel."""
        if self._kernel is not None:
            self._kernel.end_pending(why)

    def end(self) -> None:
        """Start no more kernels. Idempotent; no I/O."""
        self._closed = True
        self._answer_waiters(SessionClosed())

    async def leave(self) -> None:
        """Leave the kernel to another server, after `end` and when no task of its owner runs any more."""
        if self._leaving is not None:
            self._leaving.cancel()
        if self._kernel is not None:
            await self._kernel.leave()

    async def aclose(self) -> None:
        """End the kernel, after `end`. Idempotent."""
        self.end()
        if self._leaving is not None:
            self._leaving.cancel()
        if self._kernel is not None:
            await self._kernel.aclose()

    # -- its life -----------------------------------------------------------------

    def _waiter(self) -> asyncio.Future[Kernel]:
        waiter: asyncio.Future[Kernel] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def _answer_waiters(self, answer: Kernel | KernelBridgeError) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if isinstance(answer, Kernel):
                waiter.set_result(answer)
            else:
                waiter.set_exception(answer)

    def _do(self, action: KernelAction) -> None:
        if action is KernelAction.START:
            self._tasks.create(self._start())
        elif action is KernelAction.KILL and self._kernel is not None:
            self._tasks.create(self._kill(self._kernel))

    async def _start(self) -> None:
        self._incarnation += 1
        try:
            kernel = await self._start_kernel(self._incarnation, self._late)
        except KernelBridgeError as exc:
            log.warning("kernel_start_failed", error=str(exc))
            self._failed(exc)
            return
        except Exception as exc:
            log.exception("kernel_start_failed")
            self._failed(KernelError("The kernel could not be started", f"{type(exc).__name__}: {exc}"))
            return
        await self._began(kernel)

    async def _began(self, kernel: Kernel) -> None:
        if self._closed:
            await kernel.aclose()
            return
        self._kernel = kernel
        self.lived = True
        action = self._machine.on(KernelEvent.STARTED)
        self._tasks.create(self._watch(kernel))
        if action is KernelAction.KILL:
            await self._replace(kernel)
            return
        self._answer_waiters(kernel)
        self._dependent.interpreter_ready()

    async def _adopt(self, start: StartKernel, incarnation: int) -> None:
        try:
            kernel = await start(incarnation, self._late)
        except Exception as exc:
            if isinstance(exc, KernelBridgeError):
                log.warning("kernel_not_adopted", error=str(exc))
            else:
                log.exception("kernel_not_adopted")
            action = self._machine.on(KernelEvent.START_FAILED)
            self._gone(action, "could not be taken over after a restart of the server")
            return
        await self._began(kernel)

    async def _replace(self, kernel: Kernel) -> None:
        """End a kernel that has just been adopted, because a restart was requested meanwhile."""
        self._dependent.interpreter_reached()
        if isinstance(kernel, AdoptedKernel):
            await kernel.catch_up(CATCH_UP)
        kernel.end_pending(KERNEL_RESTARTED)
        if not kernel.died.done():
            await self._kill(kernel)

    def _failed(self, error: KernelBridgeError) -> None:
        self._machine.on(KernelEvent.START_FAILED)
        self._answer_waiters(error)
        self._dependent.interpreter_failed(error)

    def _gone(self, action: KernelAction, how: str) -> None:
        """Do what follows from the kernel's end, unless the session ends."""
        if not self._closed:
            self._do(action)
            self._dependent.interpreter_gone(how)
            if self._waiters:
                self.need()

    async def _watch(self, kernel: Kernel) -> None:
        """Wait for the kernel's end; what ran in it is answered before."""
        status = await self._end_of(kernel)
        how = "was restarted" if self._machine.state is KernelState.RESTARTING else f"ended ({status})"
        if not self._closed and self._machine.state is KernelState.READY:
            log.warning("kernel_died", status=str(status), incarnation=self._incarnation)
        try:
            # What the kernel has started may outlive it until its sandbox ends.
            await attempt(kernel.aclose(), lambda **why: log.warning("kernel_not_closed", **why))
        finally:
            self._kernel = None
            if self._leaving is not None:
                self._leaving.cancel()
                self._leaving = None
            self._gone(self._machine.on(KernelEvent.DIED), how)

    async def _end_of(self, kernel: Kernel) -> ExitStatus:
        # `wait` and not `await`: if this task is cancelled, the futures, which others wait for, must not be.
        ends: set[asyncio.Future[Any]] = {kernel.died, kernel.broken}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not kernel.died.done():
            await self._kill(kernel)
            await asyncio.wait({kernel.died})
        return kernel.died.result()

    async def _kill(self, kernel: Kernel) -> None:
        """Kill a kernel; if it does not end, destroy the sandbox."""
        try:
            await kernel.kill()
            await asyncio.wait_for(asyncio.shield(kernel.died), KILL_GRACE)
        except (KernelBridgeError, TimeoutError) as exc:
            log.warning("sandbox_given_up", why="its kernel could not be killed", error=str(exc))
            await self._destroy_sandbox()
