"""The one place that knows the current sandbox of a session: its start, adoption, pauses, loss and end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import structlog

from kernelbridge.aio.tasks import Lazy, TaskSet, attempt
from kernelbridge.aio.threads import in_thread
from kernelbridge.egress.environment import SandboxNetwork
from kernelbridge.errors import KernelBridgeError, RuntimeUnavailable, SandboxError, SessionClosed
from kernelbridge.runtimes.contract import Runtime, Sandbox, SandboxSpec
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.adoption.session_state import SessionState
from kernelbridge.workspace.files.store import WorkspaceFiles
from kernelbridge.workspace.lifecycle.pausing import Pausing
from kernelbridge.workspace.lifecycle.start_queue import StartQueue
from kernelbridge.workspace.options import DEFAULT_KERNEL, Opening
from kernelbridge.workspace.python_env import PythonEnvironment, python_environment
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.shell.texts import LINKS, TEXTS
from kernelbridge.workspace.states import WORKSPACE, Machine, WorkspaceAction, WorkspaceEvent, WorkspaceState


class SandboxOwner:
    """Owns the sandbox of one session. At most one exists at a time."""

    def __init__(
        self,
        key: SessionKey,
        *,
        runtime: Runtime,
        executor: Executor,
        starts: StartQueue,
        opening: Opening,
        files: Lazy[WorkspaceFiles],
        record: Record,
        tasks: TaskSet,
        network: SandboxNetwork,
        idle_timeout: float | None,
        busy: Callable[[], bool],
        before_start: Callable[[], Awaitable[None]],
        on_began: Callable[[Sandbox], None],
        tell: Callable[[str], None],
        observer: Callable[[WorkspaceEvent], None],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        """Own no sandbox yet; `network` is what programs in it need for their way out.

        The sandbox is paused after `idle_timeout` seconds (None: never) in which `busy` returned False. Each start
        waits for `before_start`. `on_began` is called with each sandbox that runs, `tell` with a text for the next
        result, `observer` with each event.
        """
        self._key = key
        self._runtime = runtime
        self._executor = executor
        self.starts = starts
        self.opening = opening
        self._files = files
        self._record = record
        self._tasks = tasks
        self._network = network
        self._before_start = before_start
        self._on_began = on_began
        self._tell = tell
        self._log = log
        self._machine = Machine(WORKSPACE, WorkspaceState.ABSENT, observer)
        self._sandbox: Sandbox | None = None
        self._starting: asyncio.Task[Sandbox] | None = None
        self._adopted: tuple[Sandbox, asyncio.Task[Sandbox]] | None = None
        self._clearing: asyncio.Task[None] | None = None
        self._left = False
        self.environment: PythonEnvironment
        """Environment of programs in the sandbox. Set before `get` returns."""
        self.pausing = Pausing(self._machine, lambda: self.current, idle_timeout=idle_timeout, busy=busy, tasks=tasks)
        self._not_destroyed: asyncio.Future[RuntimeUnavailable] = asyncio.get_running_loop().create_future()

    @property
    def state(self) -> WorkspaceState:
        """Where the sandbox is in its life."""
        return self._machine.state

    @property
    def ends(self) -> bool:
        """Whether the session ends, and its sandbox with it."""
        return self.state in {WorkspaceState.CLOSING, WorkspaceState.CLOSED}

    @property
    def current(self) -> Sandbox | None:
        """The sandbox, while it runs or is paused; None if it is about to end or was left to another server."""
        return None if self.ends else self._sandbox

    async def get(self) -> Sandbox:
        """Return the running sandbox; start or resume it if necessary.

        A cancelled call does not cancel the start. Raises `SandboxError`, `ImageError` or `SessionClosed`.
        """
        while self.pausing.asleep:
            await self.pausing.awake()
        if self.state is WorkspaceState.ACTIVE and self._sandbox is not None:
            return self._sandbox
        if self.state is WorkspaceState.ABSENT and self._machine.on(WorkspaceEvent.NEED) is WorkspaceAction.START:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        if self._starting is None or self.ends:
            raise SessionClosed(SandboxError.code)
        return await asyncio.shield(self._starting)

    def adopt(self, sandbox: Sandbox, state: SessionState) -> None:
        """Start to adopt the sandbox of an earlier server; the programs that `state` names continue in it."""
        if self._machine.on(WorkspaceEvent.ADOPT) is WorkspaceAction.ADOPT:
            self._starting = asyncio.get_running_loop().create_task(self._adopt(sandbox, state))
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._adopted = sandbox, self._starting

    def outlive(self) -> None:
        """Tell the sandbox, if there is one, how long to run without a server."""
        if self._sandbox is not None:
            self._sandbox.outlive(self.opening.seconds_without_server)

    def lose(self, sandbox: Sandbox) -> None:
        """Forget a sandbox that has ended by itself; the next request starts another. Idempotent."""
        if self._sandbox is sandbox and self._machine.on(WorkspaceEvent.LOST) is WorkspaceAction.FORGET:
            self._sandbox = self._starting = None
            self.pausing.ended()
            self._clear(sandbox)

    async def give_up(self) -> None:
        """Destroy the sandbox, because a program in it cannot be ended otherwise."""
        if self._sandbox is not None:
            await self._step("sandbox", self._sandbox.destroy())

    async def leave(self) -> None:
        """Leave the running sandbox to another server."""
        self._left = True
        if self._adopted is not None:
            self._adopted[1].cancel()  # its agent may not answer; the next server tries again
        if self._starting is not None:
            await asyncio.wait({self._starting})
        if self.pausing.asleep:
            await self._step("resume", self.pausing.awake())  # or its shells could not be ended
        self._sandbox = None
        self.pausing.ended()

    def begin_close(self) -> None:
        """Start no more sandboxes; call `destroy` and `closed` next."""
        self._machine.on(WorkspaceEvent.CLOSE)
        self.pausing.ended()

    async def destroy(self) -> None:
        """Destroy the sandbox, or the one that is being started."""
        if self._adopted is not None and not self._adopted[1].done():
            await self._step("sandbox", self._adopted[0].destroy())  # this ends an adoption that hangs
        if self._starting is not None:
            await self._step("sandbox", self._destroy(self._starting))

    async def _destroy(self, starting: asyncio.Task[Sandbox]) -> None:
        await asyncio.wait({starting})
        problem = starting.exception()
        if problem is None:
            try:
                await starting.result().destroy()
            except RuntimeUnavailable as exc:
                self._not_destroyed_yet(exc)
                raise
        elif isinstance(problem, RuntimeUnavailable):  # the request that started the sandbox has reported it
            self._not_destroyed_yet(problem)

    def _not_destroyed_yet(self, problem: RuntimeUnavailable) -> None:
        if not self._not_destroyed.done():
            self._not_destroyed.set_result(problem)

    async def until_replaceable(self, closing: asyncio.Task[None]) -> None:
        """Wait until the session's next sandbox can start: until `closing`, the end of this one's workspace, is done.

        Raises `RuntimeUnavailable` as soon as the runtime does not answer to destroy this sandbox: that can take longer
        than a request should wait. A later call waits for the end.
        """
        waits: set[asyncio.Future[Any]] = {closing}
        if not self._not_destroyed.done():
            waits.add(self._not_destroyed)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not closing.done():
            problem = self._not_destroyed.result()
            raise RuntimeUnavailable(problem.message, problem.reason)

    async def cleared(self) -> None:
        """Wait until a sandbox that was lost before is removed."""
        if self._clearing is not None:
            await self._clearing
            self._clearing = None

    def closed(self) -> None:
        """Note that nothing is left of the session's sandboxes."""
        self._machine.on(WorkspaceEvent.DESTROYED)

    # -- its start ------------------------------------------------------------------

    async def _start(self) -> Sandbox:
        try:
            await self._before_start()
            await self.cleared()
            spec = await self._spec()
            async with self.starts.turn(self._key.principal, wanted=self._wanted):
                sandbox = await self._create(spec)
        except BaseException:
            self._not_started()
            raise
        self._began(sandbox)
        self._log.info("sandbox_started", sandbox=sandbox.id)
        return sandbox

    async def _spec(self) -> SandboxSpec:
        if self.opening.keep_to_bounds():
            self._files.forget()
        files = await self._files.get()
        choice = self.opening.choice
        facts = await self._runtime.prepare(choice.image)
        if choice.kernel != DEFAULT_KERNEL:
            self.opening.check_kernel(facts)
        return SandboxSpec(
            workspace_id=self._key.workspace_id,
            limits=choice.limits,
            image=choice.image,
            uid=files.owner.uid if facts.any_uid else None,
            texts={**TEXTS, **self._network.files},
            links=LINKS,
        )

    async def _create(self, spec: SandboxSpec) -> Sandbox:
        with self.starts.metrics.timed("create") as split:
            sandbox = await self._runtime.create(spec)
            split("boot", sandbox.boot_seconds)
        try:
            await self._prepare(sandbox)
            opening = self.opening
            self._record.opened(
                opening.choice, sandbox, linger=opening.asked_linger, keep_while_running=opening.keep_while_running
            )
            await self._record.written()  # before anything runs in it
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    async def _adopt(self, sandbox: Sandbox, state: SessionState) -> Sandbox:
        programs = (state.kernel, state.shell, *state.terminals)
        spared = {program.process for program in programs if program is not None}
        try:
            await sandbox.resume()  # a pause may have been under way when that server ended
            await self._end_others(sandbox, spared)
            for name, content in self._network.files.items():  # an earlier server may have handed it others
                await self._step("network files", in_thread(self._executor, sandbox.shared.put, name, content))
            await self._prepare(sandbox)
            await self._record.written()
        except BaseException as exc:
            self._not_started()
            if self._left:
                self._record.leave()  # unchanged: what fails from now on must not be recorded
                raise SessionClosed(SandboxError.code) from exc
            self._clear(sandbox)
            raise
        self._began(sandbox)
        self._log.info("sandbox_adopted", sandbox=sandbox.id)
        return sandbox

    async def _end_others(self, sandbox: Sandbox, spared: Collection[str]) -> None:
        """End all programs of an earlier server but those with the ids `spared`."""
        try:
            for program in await sandbox.programs():
                if program not in spared:
                    await (await sandbox.take(program)).aclose()
        except SandboxError as exc:  # no reason to lose the interpreter
            self._log.warning("programs_not_ended", sandbox=sandbox.id, error=str(exc))

    async def _prepare(self, sandbox: Sandbox) -> None:
        files = await self._files.get()
        environment = python_environment(sandbox.facts, sandbox.workspace_path)
        try:
            await in_thread(self._executor, _install, files, environment)
        except KernelBridgeError as exc:
            # The user's own files are in the way, or the disk is full: the user needs a session to put that right.
            self._tell(f"kernelbridge: packages cannot be installed in this session: {exc}\n")
            environment = environment.without_installs()
        network = self._network.environment(sandbox.shared.path)
        self.environment = replace(environment, env={**environment.env, **network, **self.opening.choice.env})

    def _wanted(self) -> bool:
        """Whether the sandbox that is being started is still needed."""
        return self.state is WorkspaceState.STARTING and not self._left

    def _not_started(self) -> None:
        self._starting = None
        self._machine.on(WorkspaceEvent.START_FAILED)

    def _began(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.outlive()
        self._on_began(sandbox)
        self._machine.on(WorkspaceEvent.STARTED)
        if self.state is WorkspaceState.ACTIVE:
            self.pausing.began()
        self._tasks.create(self._watch(sandbox))

    # -- its end --------------------------------------------------------------------

    async def _watch(self, sandbox: Sandbox) -> None:
        status = await sandbox.wait()
        if not self.ends:
            self._log.warning("sandbox_lost", sandbox=sandbox.id, status=str(status))
        self.lose(sandbox)

    def _clear(self, sandbox: Sandbox) -> None:
        self._record.sandbox_lost()
        # The next start waits for this: both have the same name and directories.
        self._clearing = asyncio.get_running_loop().create_task(self._step("sandbox", sandbox.destroy()))

    async def _step(self, name: str, work: Awaitable[object]) -> None:
        await attempt(work, lambda **why: self._log.warning("close_failed", part=name, **why))


def _install(files: WorkspaceFiles, environment: PythonEnvironment) -> None:
    """Make the files that `pip` needs in a workspace; blocking. Raises `FileError`."""
    for directory in environment.directories:
        files.mkdir(directory)
    for path, (content, mode) in environment.files.items():
        files.write_private(path, content.encode(), mode)
    for path, target in environment.symlinks.items():
        files.symlink(path, target)
