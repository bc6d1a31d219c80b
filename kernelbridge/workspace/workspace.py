"""One workspace: the only owner of its sandbox's start and end, and of the two lanes in it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import structlog

from kernelbridge.errors import KernelBridgeError, SandboxError
from kernelbridge.jupyter.events import Listener
from kernelbridge.jupyter.execution import Cell
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.base import Limits, Runtime, Sandbox, SandboxSpec
from kernelbridge.workspace.executions import ExecutionDone, ExecutionLane
from kernelbridge.workspace.files import FileLimits, WorkspaceFiles
from kernelbridge.workspace.layout import DataDirectory, SessionKey
from kernelbridge.workspace.lifecycle import WORKSPACE, Machine, WorkspaceAction, WorkspaceEvent, WorkspaceState
from kernelbridge.workspace.pyenv import PythonEnvironment, python_environment
from kernelbridge.workspace.session_files import SessionFiles
from kernelbridge.workspace.shell import Shell
from kernelbridge.workspace.spill import Spills
from kernelbridge.workspace.tasks import TaskSet
from kernelbridge.workspace.terminal import CommandDone, TerminalLane

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOSS_NOTICE = 3.0
"""Seconds that the runtime has to say that a sandbox is gone, after a process could not be started in it."""


@dataclass(frozen=True, slots=True)
class WorkspaceSettings:
    """What every workspace of a server has in common."""

    limits: Limits
    queue_limit: int
    """Requests of one kind that may wait in a session."""
    execution_timeout: float | None
    """Seconds for one cell or command; None for no limit."""
    start_timeout: float
    """Seconds for a kernel to answer."""
    max_output: int
    """Bytes of output kept of one cell or command."""
    max_file: int
    """Bytes of one saved file."""
    max_spill: int
    """Bytes of one file that takes output past `max_output`; 0 for no such files."""
    max_upload: int = 4 << 30
    """Bytes of a file that arrives by HTTP, or is appended to."""


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
        predecessor: Workspace | None = None,
    ) -> None:
        self.key = key
        self._runtime = runtime
        self._data = data
        self._settings = settings
        self._executor = executor
        self._predecessor = predecessor
        self._log = log.bind(workspace=key.workspace_id, user_id=key.principal, session=key.session_id)
        self._machine = Machine(WORKSPACE, WorkspaceState.ABSENT)
        self._events = count(1)
        self._tasks = TaskSet()
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
        self._executions = ExecutionLane(
            self._start_kernel,
            destroy_sandbox=self._give_up,
            queue_limit=settings.queue_limit,
            tasks=self._tasks,
        )
        self._terminal = TerminalLane(self._start_shell, queue_limit=settings.queue_limit, tasks=self._tasks)

    def __repr__(self) -> str:
        return f"<Workspace {self.key.workspace_id} {self._machine.state.value} kernel={self._executions.state.value}>"

    @property
    def state(self) -> WorkspaceState:
        """The sandbox's state."""
        return self._machine.state

    def next_seq(self) -> int:
        """Give the number of the session's next event."""
        return next(self._events)

    def execute(self, cell: Cell, done: ExecutionDone, listener: Listener | None = None) -> None:
        """Queue a cell; `done` is called exactly once, and `listener` before that as it runs."""
        self._executions.submit(cell, self._settings.execution_timeout, done, listener)

    def command(self, command: str, done: CommandDone) -> None:
        """Queue a terminal command; `done` is called exactly once."""
        self._terminal.submit(command, self._settings.execution_timeout, done)

    async def close(self) -> None:
        """End what runs, with cause `session_closed`, and destroy the sandbox; the files stay. Idempotent."""
        if self._closing is None:
            action = self._machine.on(WorkspaceEvent.CLOSE)
            if action is not WorkspaceAction.DESTROY:
                raise AssertionError(action)
            self._closing = asyncio.get_running_loop().create_task(self._destroy())
        await asyncio.shield(self._closing)

    # -- the sandbox ------------------------------------------------------------

    async def sandbox(self) -> Sandbox:
        """Give the running sandbox; starts it if need be. Raises `SandboxError` or `ImageError`."""
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
                await self._predecessor.close()
                self._predecessor = None
            if self._clearing is not None:
                await self._clearing
                self._clearing = None
            await self._workspace_files()
            sockets = await self._in_thread(self._data.prepare_sockets, self.key)
            spec = SandboxSpec(
                workspace_id=self.key.workspace_id,
                files=self._data.paths(self.key).files,
                sockets=sockets,
                limits=self._settings.limits,
            )
            sandbox = await self._create(spec)
        except BaseException:
            self._starting = None
            self._machine.on(WorkspaceEvent.START_FAILED)
            raise
        self._sandbox = sandbox
        self._machine.on(WorkspaceEvent.STARTED)
        self._tasks.create(self._watch(sandbox))
        self._log.info("sandbox_started", sandbox=sandbox.id)
        return sandbox

    async def _create(self, spec: SandboxSpec) -> Sandbox:
        sandbox = await self._runtime.create(spec)
        try:
            self._environment = await self._prepare_python(sandbox)
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    async def _prepare_python(self, sandbox: Sandbox) -> PythonEnvironment:
        files = await self._workspace_files()
        environment = python_environment(sandbox.facts, sandbox.workspace_path)
        try:
            await self._in_thread(_install, files, environment)
        except KernelBridgeError as exc:
            # The user's own files are in the way, or the disk is full: no reason to keep them from putting that right.
            self._executions.tell(f"kernelbridge: packages cannot be installed in this session: {exc}\n")
            return environment.without_installs()
        return environment

    async def _watch(self, sandbox: Sandbox) -> None:
        status = await sandbox.wait()
        if self._machine.state is WorkspaceState.ACTIVE:
            self._log.warning("sandbox_lost", sandbox=sandbox.id, status=str(status))
        self._lose(sandbox)

    def _lose(self, sandbox: Sandbox) -> None:
        if self._sandbox is sandbox and self._machine.on(WorkspaceEvent.LOST) is WorkspaceAction.FORGET:
            self._sandbox = self._starting = None
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
        self._executions.end()
        if started is not None:
            # First of all: nothing in it can hold up the rest then.
            await self._step("sandbox", self._destroy_started(started))
        await self._step("terminal", self._terminal.aclose())
        await self._step("kernel", self._executions.aclose())
        await self._tasks.aclose()
        await self.files.watcher.aclose()
        if self._clearing is not None:
            await self._clearing
        if self._predecessor is not None:
            await self._predecessor.close()
        await self._step("sockets", self._in_thread(self._data.remove_sockets, self.key))
        self._machine.on(WorkspaceEvent.DESTROYED)
        self._log.info("workspace_closed")

    async def _destroy_started(self, started: asyncio.Task[Sandbox]) -> None:
        await (await started).destroy()

    async def _step(self, name: str, work: Awaitable[object]) -> None:
        try:
            await work
        except (KernelBridgeError, OSError) as exc:
            self._log.warning("close_failed", part=name, error=str(exc))
        except Exception:  # noqa: BLE001  a bug in one part must not keep the others from being closed
            self._log.exception("close_failed", part=name)

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
        facts = await self._runtime.prepare()
        root = await self._in_thread(self._data.prepare_files, self.key, facts.uid, facts.gid)
        limits = FileLimits(self._settings.max_file, self._settings.max_upload)
        return WorkspaceFiles(root, uid=facts.uid, gid=facts.gid, limits=limits, commits=self._data.commits(self.key))

    async def _start_kernel(self, incarnation: int, on_late_output: Callable[[str], None]) -> Kernel:
        async def start(sandbox: Sandbox, environment: PythonEnvironment) -> Kernel:
            spec = sandbox.facts.kernelspec()
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
                overflow=functools.partial(self._spills.new, "cell"),
            )

        return await self._in_sandbox(start)

    async def _start_shell(self) -> Shell:
        async def start(sandbox: Sandbox, environment: PythonEnvironment) -> Shell:
            return await Shell.start(
                sandbox,
                commands_host=self._data.paths(self.key).sockets,
                commands_inside=sandbox.sockets_path,
                env=environment.env,
                max_output=self._settings.max_output,
            )

        return await self._in_sandbox(start)

    async def _in_sandbox(self, start: Callable[[Sandbox, PythonEnvironment], Awaitable[T]]) -> T:
        """Start something in the sandbox; once more in a new one if the sandbox turns out to be gone."""
        sandbox = await self.sandbox()
        try:
            return await start(sandbox, self._python(sandbox))
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


def _install(files: WorkspaceFiles, environment: PythonEnvironment) -> None:
    for directory in environment.directories:
        files.mkdir(directory)
    for path, (content, mode) in environment.files.items():
        files.write_private(path, content.encode(), mode)
    for path, target in environment.symlinks.items():
        files.symlink(path, target)
