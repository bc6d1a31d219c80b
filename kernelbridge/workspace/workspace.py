"""One workspace: the only owner of its sandbox's start and end, and of the two lanes in it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from typing import Literal

import structlog
from msgspec import structs

from kernelbridge.aio.tasks import Lazy, TaskSet, Wait, attempt
from kernelbridge.aio.threads import in_thread
from kernelbridge.errors import KernelBridgeError, SandboxError
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.protocol.base import timestamp
from kernelbridge.protocol.sessions import WhatRan
from kernelbridge.runtimes.base import Runtime, Sandbox, SandboxSpec
from kernelbridge.workspace.adoption.lost_shells import LostShells, TellLoss
from kernelbridge.workspace.adoption.record import PreviousSession, Record
from kernelbridge.workspace.adoption.take_over import take_over
from kernelbridge.workspace.cells.lane import ExecutionLane
from kernelbridge.workspace.cells.queue import Job
from kernelbridge.workspace.closed_note import ClosedNote, first, ran, write_note
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.service import SessionFiles
from kernelbridge.workspace.files.spill import Spills
from kernelbridge.workspace.files.store import WorkspaceFiles
from kernelbridge.workspace.journal.feed import Feed
from kernelbridge.workspace.lifecycle.launcher import Launcher, prepare_files, prepare_python, prepare_user
from kernelbridge.workspace.lifecycle.pausing import Pausing
from kernelbridge.workspace.lifecycle.start_queue import Starts
from kernelbridge.workspace.lifecycle.status import StatusTeller
from kernelbridge.workspace.lifecycle.succession import Departure
from kernelbridge.workspace.options import DEFAULT_KERNEL, Opening, SessionOptions
from kernelbridge.workspace.resource_watch import MemoryWatch, watch_crowding
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.settings import WorkspaceSettings
from kernelbridge.workspace.shell.command_files import prepare_directory, restore_reserve
from kernelbridge.workspace.shell.lane import TerminalLane
from kernelbridge.workspace.states import (
    WORKSPACE,
    KernelEvent,
    KernelState,
    Machine,
    WorkspaceAction,
    WorkspaceEvent,
    WorkspaceState,
)
from kernelbridge.workspace.terminals.manager import Terminals

log = structlog.get_logger(__name__)


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
        closed: ClosedNote | None = None,
    ) -> None:
        """Begin without a sandbox. `closed`: how the session's life before this one ended, if that is to be told."""
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
        self._deleting = self._left = False
        self._tasks = TaskSet()
        self.pausing = Pausing(self._machine, idle_timeout=settings.idle_timeout, busy=self._busy, tasks=self._tasks)
        self._files = Lazy(self._open_files)
        self._spills = Spills(self._files.made, executor, limit=settings.max_spill)
        paths = data.paths(key)
        self.files = SessionFiles(
            paths.files, prepared=self._files.get, settled=self._settled, executor=executor, max_frame=settings.max_file
        )
        self._starting: asyncio.Task[Sandbox] | None = None
        self._sandbox: Sandbox | None = None
        self._clearing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.departure = Departure()
        self._memory = MemoryWatch(self._status.memory_ran_out)
        self._record = Record(data.state, key, created=feed.created, runtime=runtime.info.name, seq=feed.reserve)
        self._launcher = Launcher(self, self._record, paths.sockets, settings, self._spills)
        feed.on_reserved = self._record.write
        self.executions = ExecutionLane(
            self._launcher.kernel,
            destroy_sandbox=self._give_up,
            queue_limit=settings.queue_limit,
            tasks=self._tasks,
            memory=self._memory,
            record=self._record,
            loss_told=functools.partial(self._loss_told, "interpreter"),
            longest=settings.execution_timeout,
            input_timeout=settings.input_timeout,
            observer=self._changed,
        )
        self.commands = TerminalLane(
            self._launcher.shell,
            end_jobs=self._launcher.end_jobs,
            destroy_sandbox=self._give_up,
            queue_limit=settings.queue_limit,
            tasks=self._tasks,
            memory=self._memory,
            record=self._record,
            longest=settings.execution_timeout,
        )
        self.terminals = Terminals(self._launcher.in_sandbox, files_host=paths.sockets, note=self._record.terminals_are)
        self._left_shells = LostShells(self._record)
        self.on_rest: Callable[[], object] = _nothing
        """Called when a cell or command has ended; another may begin at once."""
        self.executions.on_rest = self.commands.on_rest = self._rested
        self.commands.on_loss_told = functools.partial(self._loss_told, "shell")
        self._closed = closed
        if closed is not None:
            feed.notice(closed)
            if closed.interpreter:
                self.executions.was_lost(closed.how())
            if closed.shell:
                self.commands.was_lost(closed.how())

    def __repr__(self) -> str:
        return f"<Workspace {self.key.workspace_id} {self._machine.state.value} kernel={self.executions.state.value}>"

    @property
    def state(self) -> WorkspaceState:
        """The sandbox's state."""
        return self._machine.state

    @property
    def kernel_name(self) -> str:
        """The name of the session's kernelspec."""
        return self.opening.choice.kernel

    @property
    def queued(self) -> tuple[int, int]:
        """How many cells and how many terminal commands wait."""
        return self.executions.waiting, self.commands.waiting

    @property
    def deleting(self) -> bool:
        """Whether files are being deleted that belong to nobody who comes now."""
        return self._deleting or (self._predecessor is not None and self._predecessor.deleting)

    def open(self, options: SessionOptions, done: Callable[[KernelBridgeError | None], None]) -> bool:
        """Start the sandbox and the interpreter as checked options ask; say whether they have to be started.

        `done` is called once, with None when the interpreter is ready. Raises `SessionConflict`.
        """
        if self.opening.take(options, starting=self._machine.state is not WorkspaceState.ABSENT):
            self._files.forget()  # another image may have another user
        self._record.stays(self.opening.asked_linger, keep_while_running=self.opening.keep_while_running)
        fresh = self.executions.state is not KernelState.READY
        self.executions.warm(done)
        return fresh

    def begin_close(self, *, delete_files: bool = False, why: str | None = None) -> asyncio.Task[None]:
        """End what runs, with cause `session_closed`, and destroy the sandbox. Idempotent.

        The files stay unless the first call says otherwise; the task raises `FileError` if they cannot be deleted.
        `why` is a clause for whoever comes back and did not close it; None if there is nobody to tell.
        """
        if self._closing is None:
            self._deleting = delete_files
            self._note_closing(None if delete_files else why)
            if (action := self._machine.on(WorkspaceEvent.CLOSE)) is not WorkspaceAction.DESTROY:
                raise AssertionError(action)
            self.pausing.ended()
            self._closing = asyncio.get_running_loop().create_task(self._destroy())
        return self._closing

    def adopt(self, left: PreviousSession, sandbox: Sandbox | None, job: Job | None, tell: TellLoss) -> Wait:
        """Go on with what an earlier server left, before anybody uses the session; the result waits for it.

        `sandbox` is None if it is gone; `job` stands for the cell that `left` names, `tell` for what ran in shells.
        """
        state = left.state
        self.opening.stay(state.linger, keep_while_running=state.keep_while_running)
        self.opening.adopt(state.choice.choice(self._settings.bounds), None if sandbox is None else sandbox.facts)
        self._record.adopt(state, left.cell)
        self.commands.adopt(had_shell=state.had_shell)
        if sandbox is None:
            self._status.sandbox_was_lost()
        elif self._machine.on(WorkspaceEvent.ADOPT) is WorkspaceAction.TAKE_OVER:
            self._starting = asyncio.get_running_loop().create_task(self._take_over(sandbox, state.kernel))
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        kernel, runs = state.kernel, job is not None
        start = None if kernel is None else functools.partial(self._launcher.left_kernel, kernel, runs=runs)
        reached = self.executions.adopt(start, state.incarnation, state.lost, job, left.cell)
        self._left_shells.adopt(tell, sandbox_lost=sandbox is None)
        return reached

    @property
    def kept(self) -> bool:
        """Whether it lives on without a connection: something runs, and that was asked for."""
        return self.opening.keep_while_running and (self.executions.occupied or self.commands.occupied)

    def finish(self, seconds: float, *, keep: bool) -> list[asyncio.Event]:
        """Take no more; give what is set when nothing runs any more that ends with the server.

        With `keep`, that is what `leave` cannot leave: commands. Without, it is told that `seconds` are left.
        """
        cells, commands = self.executions.finish(), self.commands.finish()
        if keep:
            return [commands]
        self._status.server_stops(seconds)
        return [cells, commands]

    async def leave(self) -> None:
        """Leave the sandbox, its kernel and the cell in it to another server; commands and terminals end."""
        self._left = True
        self._left_shells.leave()
        self.executions.finish()
        if self._starting is not None:
            await self._step("start", self._starting)
        if self.pausing.asleep:
            await self._step("resume", self.pausing.awake())  # or its shells could not be ended
        self.pausing.ended()
        await self._step("terminal", self.commands.aclose())
        await self._step("terminals", self.terminals.aclose())
        await self._tasks.aclose()
        await self._step("kernel", self.executions.leave())
        await self.files.watcher.aclose()
        self._record.leave()
        self._log.info("workspace_left", cell=self.executions.running_since is not None)

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
            await self._succeed()
            if self._clearing is not None:
                await self._clearing
                self._clearing = None
            if self.opening.keep_to_bounds():
                self._files.forget()
            files = await self._files.get()
            choice = self.opening.choice
            facts = await self._runtime.prepare(choice.image)
            if choice.kernel != DEFAULT_KERNEL:
                self.opening.check_kernel(facts)
            uid, etc = await prepare_user(self._data, self.key, facts, files, executor=self._executor)
            sockets = await in_thread(self._executor, self._data.prepare_sockets, self.key, prepare_directory)
            spec = SandboxSpec(
                workspace_id=self.key.workspace_id,
                files=self._data.paths(self.key).files,
                sockets=sockets,
                limits=choice.limits,
                image=choice.image,
                uid=uid,
                etc=etc,
            )
            try:
                async with self._starts.turn(self.key.principal, wanted=self._wanted):
                    sandbox = await self._create(spec)
            except BaseException:
                await self._step("sockets", in_thread(self._executor, self._data.remove_sockets, self.key))
                raise
        except BaseException:
            self._starting = None
            self._machine.on(WorkspaceEvent.START_FAILED)
            raise
        self._began(sandbox)
        self._record.opened(choice, sandbox)
        self._log.info("sandbox_started", sandbox=sandbox.id)
        return sandbox

    async def _take_over(self, sandbox: Sandbox, kernel: KernelIdentity | None) -> Sandbox:
        try:
            await take_over(sandbox, kernel, wanted=self._wanted)
            await self._step("reserve", in_thread(self._executor, restore_reserve, self._data.paths(self.key).sockets))
            await self._prepare(sandbox)
        except BaseException:
            self._starting = None
            self._machine.on(WorkspaceEvent.START_FAILED)
            if not self._left:
                self._clear(sandbox)
            raise
        self._began(sandbox)
        self._log.info("sandbox_taken_over", sandbox=sandbox.id)
        return sandbox

    def _wanted(self) -> bool:
        """Whether anybody waits for the sandbox that is on its way."""
        return self._machine.state is WorkspaceState.STARTING and not self._left

    def _began(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._memory.watch(sandbox)
        self.opening.started(sandbox.facts)
        self._machine.on(WorkspaceEvent.STARTED)
        if self._machine.state is WorkspaceState.ACTIVE:
            self.pausing.began(sandbox)
        self._tasks.create(self._watch(sandbox))
        self._tasks.create(watch_crowding(sandbox, self._busy, self._status.processes_ran_out, self.commands.crowded))

    async def _create(self, spec: SandboxSpec) -> Sandbox:
        sandbox = await self._runtime.create(spec)
        try:
            await self._prepare(sandbox)
        except BaseException:
            await sandbox.destroy()
            raise
        return sandbox

    async def _prepare(self, sandbox: Sandbox) -> None:
        files = await self._files.get()
        environment = await prepare_python(sandbox, files, executor=self._executor, tell=self.executions.tell)
        self._launcher.environment = replace(environment, env={**environment.env, **self.opening.choice.env})

    async def _watch(self, sandbox: Sandbox) -> None:
        status = await sandbox.wait()
        if self._machine.state not in {WorkspaceState.CLOSING, WorkspaceState.CLOSED}:
            self._log.warning("sandbox_lost", sandbox=sandbox.id, status=str(status))
        self.lose(sandbox)

    def lose(self, sandbox: Sandbox) -> None:
        """Take note that a sandbox has ended by itself, if that is not known yet."""
        if self._sandbox is sandbox and self._machine.on(WorkspaceEvent.LOST) is WorkspaceAction.FORGET:
            self._sandbox = self._starting = None
            self.pausing.ended()
            self._clear(sandbox)

    def _clear(self, sandbox: Sandbox) -> None:
        self._record.sandbox_lost()
        # The next start waits for this: both have the same name and directories.
        self._clearing = asyncio.get_running_loop().create_task(self._step("sandbox", sandbox.destroy()))

    async def _give_up(self) -> None:
        """Destroy the sandbox, because what runs in it cannot be ended otherwise."""
        if self._sandbox is not None:
            await self._step("sandbox", self._sandbox.destroy())

    async def _destroy(self) -> None:
        """Close every part, whatever becomes of the others: what cannot be ended must not keep the session."""
        started = self._starting
        self._record.remove()  # first of all: what is half destroyed must not be gone on with
        self.commands.end()
        self.terminals.end()
        self.executions.end()
        if started is not None:
            # First of all: nothing in it can hold up the rest then.
            await self._step("sandbox", self.departure.destroy(started))
        await self._step("terminal", self.commands.aclose())
        await self._step("terminals", self.terminals.aclose())
        await self._step("kernel", self.executions.aclose())
        await self._tasks.aclose()
        await self.files.watcher.aclose()
        if self._clearing is not None:
            await self._clearing
        if self._predecessor is not None:
            await self._step("predecessor", self._predecessor.close())
        await self._step("sockets", in_thread(self._executor, self._data.remove_sockets, self.key))
        try:
            if self._deleting:
                self.files_deleted = await in_thread(self._executor, self._data.delete_files, self.key)
        finally:
            self._deleting = False
            self._machine.on(WorkspaceEvent.DESTROYED)
            self._log.info("workspace_closed", files_deleted=self.files_deleted)

    async def _succeed(self) -> None:
        if self._predecessor is not None:
            await self._predecessor.departure.over(self._predecessor.begin_close())
            self._predecessor = None

    async def _step(self, name: str, work: Awaitable[object]) -> None:
        await attempt(work, lambda **why: self._log.warning("close_failed", part=name, **why))

    def _busy(self) -> bool:
        return self.executions.busy or self.commands.busy or self.terminals.busy

    def _changed(self, event: WorkspaceEvent | KernelEvent) -> None:
        self._status.changed(self._machine.state, self.executions.state, lost=event is WorkspaceEvent.LOST)
        self._left_shells.changed(event)
        if event is KernelEvent.DIED:
            self._record.kernel_ended("ended")

    def _rested(self) -> None:
        self.on_rest()

    # -- what is told of an end -------------------------------------------------

    def _note_closing(self, why: str | None) -> None:
        """Note for whoever comes back what this end costs them; what nobody was told of the one before is in it."""
        if why is None:
            self._put_note(None)
        elif self.opening.ran:
            self._put_note(
                ClosedNote(
                    closed_at=timestamp(),
                    why=why,
                    what_ran=first(list(self._running())),
                    answers_lost=self.feed.unread,
                    interpreter=self.executions.has_lost,
                    shell=self.commands.has_lost,
                )
            )

    def _running(self) -> Iterator[WhatRan]:
        if (job := self.executions.running) is not None:
            since = self.executions.running_since
            at = None if since is None else timestamp(since)
            yield ran("cell", request_id=job.request_id, since=at, code=job.cell.code)
        if (command := self.commands.running) is not None:
            text, request_id, began = command
            yield ran("command", request_id=request_id, since=timestamp(began), code=text)
        for terminal_id in self.terminals.ids:
            yield ran("terminal", code=terminal_id)

    def _loss_told(self, of: Literal["interpreter", "shell"]) -> None:
        """Take note that a result has told that the one or the other was lost, maybe with an earlier life."""
        if of == "interpreter":
            self._record.loss_told()
        if self._closed is not None:
            left = structs.replace(self._closed, **{of: False})
            self._put_note(left if left.untold else None)

    def _put_note(self, note: ClosedNote | None) -> None:
        self._closed = note
        if note is None:
            self.feed.drop_notice()
        try:
            if note is None:
                self._data.forget_closed(self.key)
            else:
                self._data.note_closed(self.key, write_note(note))
        except OSError as exc:
            self._log.warning("closing_not_noted", error=exc.strerror)

    # -- what runs in it --------------------------------------------------------

    async def _settled(self) -> None:
        if self._predecessor is not None and self._predecessor.deleting:
            await self._succeed()

    async def _open_files(self) -> WorkspaceFiles:
        await self._settled()
        # What was adopted runs, and keeps its user.
        adopted = self.opening.facts
        facts = adopted or await self._runtime.prepare(self.opening.choice.image)
        own_uid = adopted is None and facts.any_uid
        return await prepare_files(
            self._data, self.key, facts, self._settings, own_uid=own_uid, executor=self._executor
        )


def _nothing() -> None:
    """Do nothing: nobody waits for it."""
