"""One workspace: the only owner of its sandbox's start and end, and of the two lanes in it."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import TypeVar

import structlog

from kernelbridge.errors import KernelBridgeError, RuntimeUnavailable, SandboxError
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.base import Runtime, Sandbox, SandboxSpec
from kernelbridge.workspace.budget import run_timeout
from kernelbridge.workspace.choice import DEFAULT_KERNEL, Wish
from kernelbridge.workspace.crowding import watch_crowding
from kernelbridge.workspace.executions import ExecutionLane
from kernelbridge.workspace.feed import Feed
from kernelbridge.workspace.files import FileLimits, WorkspaceFiles
from kernelbridge.workspace.layout import DataDirectory, SessionKey
from kernelbridge.workspace.lifecycle import (
    WORKSPACE,
    KernelEvent,
    KernelState,
    Machine,
    WorkspaceAction,
    WorkspaceEvent,
    WorkspaceState,
)
from kernelbridge.workspace.memory import MemoryWatch
from kernelbridge.workspace.opening import Opening
from kernelbridge.workspace.pausing import Pausing
from kernelbridge.workspace.preparing import prepare_python
from kernelbridge.workspace.pyenv import PythonEnvironment
from kernelbridge.workspace.session_files import SessionFiles
from kernelbridge.workspace.settings import WorkspaceSettings
from kernelbridge.workspace.shell import Shell
from kernelbridge.workspace.shell_exchange import Listen
from kernelbridge.workspace.shell_start import start_shell
from kernelbridge.workspace.spill import Spills
from kernelbridge.workspace.starts import Starts
from kernelbridge.workspace.status import StatusTeller
from kernelbridge.workspace.tasks import TaskSet
from kernelbridge.workspace.terminal import CommandDone, Tell, TerminalLane
from kernelbridge.workspace.terminals import Terminals

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOSS_NOTICE = 3.0
"""Seconds that the runtime has to say that a sandbox is gone, after a process could not be started in it."""


class Workspace:
    """A session's server-side life. Made with the first message, closed when nobody comes back."""

    def __init__(
        self,
        key: SessionKey,
        *,
        runtime: Runtime,
        data: DataDirectory,
        settings: WorkspaceSettings,
        executor: Executor,
        feed: Feed,
        starts: Starts,
        predecessor: Workspace | None = None,
    ) -> None:
        self.key = key
        self.feed = feed
        self.opening = Opening(settings.bounds)
        self.files_deleted = False
        """Whether there were files, and closing it has removed them."""
        self._runtime = runtime
        self._data = data
        self._settings = settings
        self._executor = executor
        self._starts = starts
        self._predecessor = predecessor
        self._log = log.bind(workspace=key.workspace_id, user_id=key.principal, session=key.session_id)
        self._status = StatusTeller(feed.status)
        self._machine = Machine(WORKSPACE, WorkspaceState.ABSENT, self._changed)
        self._deleting = False
        self._tasks = TaskSet()
        self.pausing = Pausing(self._machine, idle_timeout=settings.idle_timeout, busy=self._busy, tasks=self._tasks)
        self._spills = Spills(self._opened_files, executor, limit=settings.max_spill)
        self._files: asyncio.Task[WorkspaceFiles] | None = None
        self.files = SessionFiles(
            data.paths(key).files, prepared=self._workspace_files, executor=executor, max_frame=settings.max_file
        )
        self._starting: asyncio.Task[Sandbox] | None = None
        self._sandbox: Sandbox | None = None
        self._clearing: asyncio.Task[None] | None = None
        self._environment: PythonEnvironment | None = None
        self._closing: asyncio.Task[None] | None = None
        self._memory = MemoryWatch(self._status.memory_ran_out)
        self.executions = ExecutionLane(
            self._start_kernel,
            destroy_sandbox=self._give_up,
            queue_limit=settings.queue_limit,
            tasks=self._tasks,
            memory=self._memory,
            longest=settings.execution_timeout,
            input_timeout=settings.input_timeout,
            observer=self._changed,
        )
        self._terminal = TerminalLane(
            self._start_shell,
            end_jobs=self._end_jobs,
            destroy_sandbox=self._give_up,
            queue_limit=settings.queue_limit,
            tasks=self._tasks,
            memory=self._memory,
        )
        self._jobs_mark = secrets.token_hex(16)  # in the environment of all that terminal commands start
        self.terminals = Terminals(self._in_sandbox, files_host=data.paths(key).sockets)

    def __repr__(self) -> str:
        return f"<Workspace {self.key.workspace_id} {self._machine.state.value} kernel={self.executions.state.value}>"

    @property
    def state(self) -> WorkspaceState:
        """The sandbox's state."""
        return self._machine.state

    @property
    def queued(self) -> tuple[int, int]:
        """How many cells and how many terminal commands wait."""
        return self.executions.waiting, self._terminal.waiting

    @property
    def deleting(self) -> bool:
        """Whether files are being deleted that belong to nobody who comes now."""
        return self._deleting or (self._predecessor is not None and self._predecessor.deleting)

    def open(self, wish: Wish, done: Callable[[KernelBridgeError | None], None]) -> bool:
        """Start the sandbox and the interpreter as a checked wish asks; say whether they have to be started.

        `done` is called once, with None when the interpreter is ready. Raises `SessionConflict`.
        """
        image = self.opening.choice.image
        self.opening.take(wish, starting=self._machine.state is not WorkspaceState.ABSENT)
        if self.opening.choice.image != image:
            self._files = None  # another image may have another user
        fresh = self.executions.state is not KernelState.READY
        self.executions.warm(done)
        return fresh

    def command(
        self, command: str, done: CommandDone, *, timeout: float | None = None, listen: Listen | None = None
    ) -> None:
        """Queue a terminal command; `done` is called exactly once, and `listen` before that with its output."""
        self._terminal.submit(command, run_timeout(timeout, self._settings.execution_timeout), done, listen)

    def interrupt_command(self, tell: Tell, *, queued: bool, jobs: bool) -> None:
        """End the running terminal command, with `queued` those that wait, with `jobs` all that any has started."""
        self._terminal.interrupt(tell, queued=queued, jobs=jobs)

    def begin_close(self, *, delete_files: bool = False) -> asyncio.Task[None]:
        """End what runs, with cause `session_closed`, and destroy the sandbox. Idempotent.

        The files stay unless the first call says otherwise; the task raises `FileError` if they cannot be deleted.
        """
        if self._closing is None:
            self._deleting = delete_files
            action = self._machine.on(WorkspaceEvent.CLOSE)
            if action is not WorkspaceAction.DESTROY:
                raise AssertionError(action)
            self.pausing.ended()
            self._closing = asyncio.get_running_loop().create_task(self._destroy())
        return self._closing

    async def close(self) -> None:
        """Wait until it is closed; see `begin_close`."""
        await asyncio.shield(self.begin_close())

    # -- the sandbox ------------------------------------------------------------

    async def sandbox(self) -> Sandbox:
        """Give the running sandbox; starts or resumes it if need be. Raises `SandboxError` or `ImageError`."""
        while self.pausing.asleep:
            await self.pausing.awake()
        state = self._machine.state
        if state is WorkspaceState.ACTIVE and self._sandbox is not None:
            return self._sandbox
        if state is WorkspaceState.ABSENT and self._machine.on(WorkspaceEvent.NEED) is WorkspaceAction.START:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        if self._starting is None or state in {WorkspaceState.CLOSING, WorkspaceState.CLOSED}:
            raise SandboxError("The session is closing", "send the request again to open it anew")
        # Shielded: one waiter's end must not end the start that others wait for.
        return await asyncio.shield(self._starting)

    async def _start(self) -> Sandbox:
        try:
            if self._predecessor is not None:
                await self._step("predecessor", self._predecessor.close())
                self._predecessor = None
            if self._clearing is not None:
                await self._clearing
                self._clearing = None
            await self._workspace_files()
            choice = self.opening.choice
            if choice.kernel != DEFAULT_KERNEL:
                self.opening.check_kernel(await self._runtime.prepare(choice.image))
            sockets = await self._in_thread(self._data.prepare_sockets, self.key)
            spec = SandboxSpec(
                workspace_id=self.key.workspace_id,
                files=self._data.paths(self.key).files,
                sockets=sockets,
                limits=choice.limits,
                image=choice.image,
            )
            try:
                await self._in_thread(self._data.remember, self.key, choice.note())
                async with self._starts.turn(self.key.principal):
                    sandbox = await self._create(spec)
            except BaseException:
                await self._step("sockets", self._in_thread(self._data.remove_sockets, self.key))
                raise
        except BaseException:
            self._starting = None
            self._machine.on(WorkspaceEvent.START_FAILED)
            raise
        self._sandbox = sandbox
        self._memory.watch(sandbox)
        self.opening.started(sandbox.facts)
        self._machine.on(WorkspaceEvent.STARTED)
        if self._machine.state is WorkspaceState.ACTIVE:
            self.pausing.began(sandbox)
        self._tasks.create(self._watch(sandbox))
        self._tasks.create(watch_crowding(sandbox, self._busy, self._status.processes_ran_out))
        self._log.info("sandbox_started", sandbox=sandbox.id)
        return sandbox

    async def _create(self, spec: SandboxSpec) -> Sandbox:
        sandbox = await self._runtime.create(spec)
        try:
            environment = await prepare_python(
                sandbox, await self._workspace_files(), executor=self._executor, tell=self.executions.tell
            )
            self._environment = replace(environment, env={**self.opening.choice.env, **environment.env})
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    async def _watch(self, sandbox: Sandbox) -> None:
        status = await sandbox.wait()
        if self._machine.state not in {WorkspaceState.CLOSING, WorkspaceState.CLOSED}:
            self._log.warning("sandbox_lost", sandbox=sandbox.id, status=str(status))
        self._lose(sandbox)

    def _lose(self, sandbox: Sandbox) -> None:
        if self._sandbox is sandbox and self._machine.on(WorkspaceEvent.LOST) is WorkspaceAction.FORGET:
            self._sandbox = self._starting = None
            self.pausing.ended()
            # The next start waits for this: both have the same name and directories.
            self._clearing = asyncio.get_running_loop().create_task(self._step("sandbox", sandbox.destroy()))

    async def _give_up(self) -> None:
        """Destroy the sandbox, because what runs in it cannot be ended otherwise."""
        if self._sandbox is not None:
            await self._step("sandbox", self._sandbox.destroy())

    async def _destroy(self) -> None:
        """Close every part, whatever becomes of the others: what cannot be ended must not keep the session."""
        started = self._starting
        self._terminal.end()
        self.terminals.end()
        self.executions.end()
        if started is not None:
            # First of all: nothing in it can hold up the rest then.
            await self._step("sandbox", self._destroy_started(started))
        await self._step("terminal", self._terminal.aclose())
        await self._step("terminals", self.terminals.aclose())
        await self._step("kernel", self.executions.aclose())
        await self._tasks.aclose()
        await self.files.watcher.aclose()
        if self._clearing is not None:
            await self._clearing
        if self._predecessor is not None:
            await self._step("predecessor", self._predecessor.close())
        await self._step("sockets", self._in_thread(self._data.remove_sockets, self.key))
        try:
            if self._deleting:
                self.files_deleted = await self._in_thread(self._data.delete_files, self.key)
            elif self.opening.ran:
                await self._step("note", self._in_thread(self._data.remember, self.key, None))
        finally:
            self._deleting = False
            self._machine.on(WorkspaceEvent.DESTROYED)
            self._log.info("workspace_closed", files_deleted=self.files_deleted)

    async def _destroy_started(self, started: asyncio.Task[Sandbox]) -> None:
        await (await started).destroy()

    async def _step(self, name: str, work: Awaitable[object]) -> None:
        try:
            await work
        except (KernelBridgeError, OSError) as exc:
            self._log.warning("close_failed", part=name, error=str(exc))
        except Exception:  # noqa: BLE001  a bug in one part must not keep the others from being closed
            self._log.exception("close_failed", part=name)

    def _busy(self) -> bool:
        return self.executions.busy or self._terminal.busy or self.terminals.busy

    def _changed(self, event: WorkspaceEvent | KernelEvent) -> None:
        self._status.changed(self._machine.state, self.executions.state, lost=event is WorkspaceEvent.LOST)

    # -- what runs in it --------------------------------------------------------

    async def _workspace_files(self) -> WorkspaceFiles:
        if self._files is None or (self._files.done() and self._files.exception() is not None):
            self._files = asyncio.get_running_loop().create_task(self._open_files())
        return await asyncio.shield(self._files)

    def _opened_files(self) -> WorkspaceFiles:
        """Give the files, which whatever runs has opened before it ran."""
        if self._files is None:
            raise AssertionError("nothing has run yet")
        return self._files.result()

    async def _open_files(self) -> WorkspaceFiles:
        if self._predecessor is not None and self._predecessor.deleting:
            await self._step("predecessor", self._predecessor.close())
        facts = await self._runtime.prepare(self.opening.choice.image)
        root = await self._in_thread(
            functools.partial(self._data.prepare_files, self.key, facts.uid, facts.gid, hand_over=True)
        )
        limits = FileLimits(self._settings.max_file, self._settings.max_upload)
        return WorkspaceFiles(root, uid=facts.uid, gid=facts.gid, limits=limits, commits=self._data.commits(self.key))

    async def _start_kernel(self, incarnation: int, on_late_output: Callable[[str], None]) -> Kernel:
        async def start(sandbox: Sandbox, environment: PythonEnvironment) -> Kernel:
            spec = sandbox.facts.kernelspec(self.opening.choice.kernel)
            return await Kernel.start(
                sandbox,
                spec,
                argv=environment.argv(spec, sandbox.facts),
                env=environment.env,
                sockets_host=self._data.paths(self.key).sockets,
                incarnation=incarnation,
                start_timeout=self._settings.start_timeout,
                max_output=self._settings.max_output,
                on_late_output=on_late_output,
                overflows=self._spills.of("cell"),
            )

        return await self._in_sandbox(start)

    async def _start_shell(self) -> Shell:
        async def start(sandbox: Sandbox, environment: PythonEnvironment) -> Shell:
            return await start_shell(
                sandbox,
                commands_host=self._data.paths(self.key).sockets,
                commands_inside=sandbox.sockets_path,
                env=environment.env,
                mark=self._jobs_mark,
                max_output=self._settings.max_output,
                overflow=functools.partial(self._spills.new, "command"),
            )

        return await self._in_sandbox(start)

    async def _end_jobs(self, spare: int) -> None:
        if self._sandbox is not None:
            await self._sandbox.sweep(self._jobs_mark, spare=spare)

    async def _in_sandbox(self, start: Callable[[Sandbox, PythonEnvironment], Awaitable[T]]) -> T:
        """Start something in the sandbox; once more in a new one if the sandbox turns out to be gone."""
        sandbox = await self.sandbox()
        try:
            return await start(sandbox, self._python(sandbox))
        except RuntimeUnavailable:
            raise  # nobody can say now whether the sandbox is gone
        except SandboxError:
            try:
                await asyncio.wait_for(sandbox.wait(), LOSS_NOTICE)
            except TimeoutError:
                pass
            else:
                self._lose(sandbox)
                sandbox = await self.sandbox()
                return await start(sandbox, self._python(sandbox))
            raise

    def _python(self, sandbox: Sandbox) -> PythonEnvironment:
        if self._environment is None:
            raise AssertionError(f"sandbox {sandbox.id} has no python environment")
        return self._environment

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, functools.partial(function, *args))
