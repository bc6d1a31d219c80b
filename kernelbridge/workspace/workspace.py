"""One workspace: a session's life, and the parts that it consists of."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from typing import Literal

import structlog
from msgspec import UNSET, structs

from kernelbridge.aio.tasks import Lazy, TaskSet, Wait, attempt
from kernelbridge.aio.threads import in_thread, in_turns
from kernelbridge.egress.environment import SandboxNetwork
from kernelbridge.errors import LimitExceeded
from kernelbridge.protocol.base import timestamp
from kernelbridge.protocol.sessions import WhatRan
from kernelbridge.runtimes.contract import Runtime, Sandbox
from kernelbridge.settings.settings import Settings
from kernelbridge.workspace.adoption.record import PreviousSession, Record
from kernelbridge.workspace.cells.lane import ExecutionLane
from kernelbridge.workspace.cells.run import Job
from kernelbridge.workspace.command_outcome import ReportLoss
from kernelbridge.workspace.denials import Denials
from kernelbridge.workspace.disk_watch import DiskStops, DiskWatch
from kernelbridge.workspace.egress import Egress, SessionEgress
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.service import SessionFiles
from kernelbridge.workspace.files.spill import SpillFiles
from kernelbridge.workspace.files.store import FileLimits, WorkspaceFiles
from kernelbridge.workspace.journal.feed import Feed
from kernelbridge.workspace.lifecycle.closed_notes import ClosedNote, ClosedNotes, ran
from kernelbridge.workspace.lifecycle.launcher import Launcher
from kernelbridge.workspace.lifecycle.sandbox_owner import SandboxOwner
from kernelbridge.workspace.lifecycle.start_queue import StartQueue
from kernelbridge.workspace.lifecycle.status import StatusReporter
from kernelbridge.workspace.options import Bounds, Opening, SessionOptions
from kernelbridge.workspace.resource_watch import MemoryWatch, watch_crowding
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.shell.lane import CommandLane, PreviousCommand
from kernelbridge.workspace.states import (
    KernelEvent,
    WorkspaceEvent,
    WorkspaceState,
)
from kernelbridge.workspace.terminals.manager import Terminals

log = structlog.get_logger(__name__)


class Workspace:
    """The server's side of one session. Made with its first message, closed after its last connection."""

    def __init__(
        self,
        key: SessionKey,
        *,
        runtime: Runtime,
        data: DataDirectory,
        settings: Settings,
        bounds: Bounds,
        executor: Executor,
        feed: Feed,
        starts: StartQueue,
        notes: ClosedNotes,
        egress: Egress | None = None,
        predecessor: Workspace | None = None,
        closed: ClosedNote | None = None,
    ) -> None:
        """Start without a sandbox.

        `egress` is the way out of sandboxes that have no network; `closed` says how the session was closed before, if
        clients must be told.
        """
        self.key = key
        self.feed = feed
        self.opening = Opening(bounds)
        self.files_deleted = False
        """Whether there were files, and the close has deleted them."""
        self._runtime = runtime
        self._data = data
        self._settings = settings
        self._executor = executor
        self._notes = notes
        self._predecessor = predecessor
        self.reopened: int = 0 if predecessor is None else predecessor.reopened + 1
        """How often the session has been opened again since the first of the closes that are under way."""
        self._log = log.bind(workspace=key.workspace_id, user_id=key.principal.subject, session=key.session_id)
        self._status = StatusReporter(feed.status)
        self._deleting = False
        self._tasks = TaskSet()
        self._files = Lazy(self._open_files)
        root = data.files(key)
        disk = self._disk = data.disk.session(key.workspace_id, root)
        disk.lower(None, by=self.opening)  # a life of the session that is being closed may have asked for less
        self._spills = SpillFiles(self._files.made, executor, self._tasks, limit=settings.max_spill, disk=disk)
        self.files = SessionFiles(
            root,
            prepared=self._files.get,
            settled=self._wait_for_deletion,
            executor=executor,
            max_frame=settings.max_message,
            disk=disk,
        )
        self._closing: asyncio.Task[None] | None = None
        self._memory = MemoryWatch(self._status.memory_ran_out)
        denials = Denials()
        self._egress = None
        if egress is not None:
            self._egress = SessionEgress(
                key, egress, level=lambda: self.opening.choice.egress, denials=denials, report=self._denied
            )
        stops = DiskStops()
        self._record = Record(
            data.state,
            key,
            created=feed.created,
            runtime=runtime.info.name,
            seq=feed.reserve,
            executor=executor,
            max_output=settings.max_output,
        )
        self.sandbox = SandboxOwner(
            key,
            runtime=runtime,
            executor=executor,
            starts=starts,
            opening=self.opening,
            files=self._files,
            record=self._record,
            tasks=self._tasks,
            network=SandboxNetwork() if egress is None else egress.network,
            idle_timeout=settings.idle_timeout,
            busy=self._busy,
            before_start=self._wait_for_predecessor,
            on_began=self._began,
            tell=self._tell,
            observer=self._changed,
            log=self._log,
        )
        self.pausing = self.sandbox.pausing
        self._launcher = Launcher(self.sandbox, self._record, settings, self._spills)
        feed.on_reserved = self._record.write
        feed.in_hand = lambda: self.executions.in_hand | self.commands.in_hand
        self.executions = ExecutionLane(
            self._launcher.kernel,
            destroy_sandbox=self.sandbox.give_up,
            queue_limit=settings.queue_limit,
            tasks=self._tasks,
            memory=self._memory,
            denials=denials,
            disk_stops=stops,
            record=self._record,
            on_loss_reported=functools.partial(self._loss_reported, "interpreter"),
            longest=settings.execution_timeout,
            input_timeout=settings.input_timeout,
            observer=self._changed,
        )
        self.commands = CommandLane(
            self._launcher.shell,
            destroy_sandbox=self.sandbox.give_up,
            queue_limit=settings.queue_limit,
            tasks=self._tasks,
            memory=self._memory,
            denials=denials,
            disk_stops=stops,
            record=self._record,
            longest=settings.execution_timeout,
        )
        self.terminals = Terminals(self._launcher.in_sandbox, self._launcher.adopt_program, self._record)
        self._disk_watch = DiskWatch(
            disk,
            root,
            stops,
            executor=executor,
            asleep=lambda: self.pausing.asleep,
            tell=self._disk_ran_out,
            interrupt=self._interrupt_writers,
            end=self.sandbox.give_up,
            metrics=self.sandbox.starts.metrics,
        )
        self.commands.on_loss_reported = functools.partial(self._loss_reported, "shell")
        self._closed = closed
        if closed is not None:
            feed.set_notice(closed.status(key.session_id, feed.next_seq()))
            if closed.interpreter:
                self.executions.was_lost(closed.how())
            if closed.shell:
                self.commands.was_lost(closed.how())

    def __repr__(self) -> str:
        return f"<Workspace {self.key.workspace_id} {self.state.value} kernel={self.executions.state.value}>"

    @property
    def state(self) -> WorkspaceState:
        """The sandbox's state."""
        return self.sandbox.state

    @property
    def disk_size(self) -> int | None:
        """Bytes that it takes of the disk, as its sandbox was looked at last; None if it was not."""
        return self._disk_watch.size

    @property
    def queued(self) -> tuple[int, int]:
        """The numbers of cells and of terminal commands that wait."""
        return self.executions.waiting, self.commands.waiting

    def running(self) -> Iterator[WhatRan]:
        """Return what runs: a cell, a command, and open terminals."""
        if (run := self.executions.running) is not None:
            yield ran("cell", request_id=run.job.request_id, since=timestamp(run.since), code=run.job.cell.code)
        if (command := self.commands.running) is not None:
            text, request_id, began = command
            yield ran("command", request_id=request_id, since=timestamp(began), code=text)
        for terminal_id in self.terminals.ids:
            yield ran("terminal", code=terminal_id)

    @property
    def deleting(self) -> bool:
        """Whether the files of this life of the session, or of one before, are being deleted."""
        return self._deleting or (self._predecessor is not None and self._predecessor.deleting)

    def open(self, options: SessionOptions) -> None:
        """Apply checked options, before the interpreter is started with them. Raises `SessionConflict`."""
        if self.opening.apply(options, starting=self.state is not WorkspaceState.ABSENT):
            self._files.forget()  # another image may have another user
            self._disk.lower(self.opening.choice.disk, by=self.opening)
        self._record.set_linger(self.opening.asked_linger, keep_while_running=self.opening.keep_while_running)
        self.sandbox.outlive()

    def begin_close(self, *, delete_files: bool = False, why: str | None = None) -> asyncio.Task[None]:
        """End what runs, with cause `session_closed`, and destroy the sandbox. Idempotent.

        The first call decides whether the files are deleted; the task raises `FileError` if they cannot be deleted.
        `why` is a clause for clients that return and did not close the session; None if there are none.
        """
        if self._closing is None:
            self._deleting = delete_files
            self._note_closing(None if delete_files else why)
            self.sandbox.begin_close()
            self._closing = asyncio.get_running_loop().create_task(self._destroy())
        return self._closing

    def adopt(
        self,
        previous: PreviousSession,
        sandbox: Sandbox | None,
        job: Job | None,
        command: PreviousCommand | None,
        report_loss: ReportLoss,
    ) -> Wait:
        """Adopt a session of an earlier server, before any client uses it; return what waits for its kernel.

        `sandbox` is None if it has ended. `job` replaces the running cell of `previous`, `command` the running command
        if its shell continues, and `report_loss` reports the end of shells and terminals.
        """
        state = previous.state
        self.opening.set_linger(state.linger, keep_while_running=state.keep_while_running)
        self.opening.adopt(state.choice, None if sandbox is None else sandbox.facts)
        self._disk.lower(self.opening.disk or None, by=self.opening)
        self._record.adopt(state, previous.cell)
        if sandbox is None:
            self._status.sandbox_was_lost()
        else:
            self.sandbox.adopt(sandbox, state)
        kernel, runs = state.kernel, job is not None
        start = None if kernel is None else functools.partial(self._launcher.adopt_kernel, kernel, runs=runs)
        reached = self.executions.adopt(start, state.incarnation, state.lost, job, previous.cell)
        shell = None if state.shell is None else functools.partial(self._launcher.adopt_shell, state.shell)
        self.commands.adopt(shell, command, had_shell=state.had_shell)
        if sandbox is None:
            report_loss(None, "sandbox_lost")
            self._record.shells_reported()
        else:
            self.terminals.adopt(state.terminals, report_loss)
        return reached

    @property
    def kept(self) -> bool:
        """Whether the session stays open without a connection because something runs (`keepWhileRunning`)."""
        return self.opening.keep_while_running and (self.executions.occupied or self.commands.occupied)

    def call_on_rest(self, call: Callable[[], object]) -> None:
        """Call `call` whenever a cell or command has ended; the next one may start at once."""
        self.executions.on_rest = self.commands.on_rest = call

    def finish(self, seconds: float, *, keep: bool) -> list[asyncio.Event]:
        """Accept no more work; return events that are set when no cell and no command runs.

        With `keep`, return none: `leave` leaves what runs to the next server. Without, report that `seconds` are left.
        """
        if keep:
            self._begin_leave()
            return []
        cells, commands = self.executions.finish(), self.commands.finish()
        self._status.server_stops(seconds)
        return [cells, commands]

    async def leave(self) -> None:
        """Leave the sandbox to another server, with its kernel, shell and terminals and what runs in them."""
        self._begin_leave()
        await self._end_egress()
        await self.sandbox.leave()
        await self._step("terminal", self.commands.leave())
        await self._step("terminals", self.terminals.leave())
        await self._tasks.aclose()
        await self._step("kernel", self.executions.leave())
        await self._spills.aclose()
        await self.files.watcher.aclose()
        self._record.leave()
        await self._record.written()
        await self._notes.saved(self.key)
        self._log.info("workspace_left", cell=self.executions.running is not None)

    def _begin_leave(self) -> None:
        """Accept no more work, and leave kernels and shells that have not been adopted yet to the next server."""
        self.executions.finish(leaving=True)
        self.commands.finish(leaving=True)
        self.terminals.finish()

    async def close(self) -> None:
        """Close the session (`begin_close`) and wait for the end; a cancelled call does not cancel the close."""
        await asyncio.shield(self.begin_close())

    # -- its parts ----------------------------------------------------------------

    def _began(self, sandbox: Sandbox) -> None:
        self._memory.watch(sandbox)
        if self._egress is not None:
            self._egress.began(sandbox)
        self.opening.started(sandbox.facts)
        self._tasks.create(self._disk_watch.watch(sandbox))
        self._tasks.create(watch_crowding(sandbox, self._busy, self._status.processes_ran_out, self.commands.crowded))

    async def _destroy(self) -> None:
        """Close every part, even if another one fails to close: what cannot be ended must not keep the session."""
        self._record.leave()  # its files stay as they are, until they are removed
        self.commands.end()
        self.terminals.end()
        self.executions.end()
        # If the server crashes before both are done, the next one finds the note of the end or a session to adopt.
        await self._notes.saved(self.key)
        self._record.remove()
        await self._record.written()
        await self.sandbox.destroy()  # before its parts: nothing in it can hold up the rest then
        await self._end_egress()
        await self._step("terminal", self.commands.aclose())
        await self._step("terminals", self.terminals.aclose())
        await self._step("kernel", self.executions.aclose())
        await self._tasks.aclose()
        await self._spills.aclose()
        await self.files.watcher.aclose()
        await self.sandbox.cleared()
        if self._predecessor is not None:
            await self._step("predecessor", self._predecessor.close())
        try:
            if self._deleting:
                self.files_deleted = await in_thread(self._executor, self._data.delete_files, self.key)
        finally:
            self._deleting = False
            self._disk.restore(self.opening)
            self.sandbox.closed()
            self._log.info("workspace_closed", files_deleted=self.files_deleted)

    async def _wait_for_predecessor(self) -> None:
        if self._predecessor is not None:
            await self._predecessor.sandbox.until_replaceable(self._predecessor.begin_close())
            self._predecessor = None

    async def _end_egress(self) -> None:
        if self._egress is not None:
            await self._egress.aclose()

    async def _step(self, name: str, work: Awaitable[object]) -> None:
        await attempt(work, lambda **why: self._log.warning("close_failed", part=name, **why))

    def _busy(self) -> bool:
        return self.executions.busy or self.commands.busy or self.terminals.busy

    def _changed(self, event: WorkspaceEvent | KernelEvent) -> None:
        self._status.changed(self.state, self.executions.state, lost=event is WorkspaceEvent.LOST)
        if event is KernelEvent.DIED:
            self._record.kernel_ended("ended")

    def _denied(self, *, host: str, port: int, reason: str, detail: str) -> None:
        """Send an event, with the `requestId` of what runs if that can only be one cell or command."""
        run, command = self.executions.running, self.commands.running
        running = [each for each in (run and run.job.request_id, command and command[1]) if each]
        known = len(running) == 1 and (run is None or command is None)
        self.feed.egress_denied(host, port, reason, detail, request_id=running[0] if known else UNSET)

    def _tell(self, text: str) -> None:
        self.executions.add_late_output(text)

    # -- the disk limit -------------------------------------------------------------

    def _disk_ran_out(self, detail: str, *, stopped: bool) -> None:
        self._status.disk_ran_out(detail)
        if not (stopped and (self.executions.occupied or self.commands.occupied)):
            self._tell(f"kernelbridge: {detail}\n")  # else the result of what is stopped reports it

    def _interrupt_writers(self) -> None:
        with contextlib.suppress(LimitExceeded):  # so many interrupts are under way that one more changes nothing
            self.executions.interrupt(lambda _step: None)
        self.commands.interrupt(lambda _step: None, queued=False, jobs=True)

    # -- the note of the close ----------------------------------------------------

    def _note_closing(self, why: str | None) -> None:
        """Write what this close costs clients that return, with the unreported losses of the close before."""
        if why is None:
            self._put_note(None)
        elif self.opening.ran:
            self._put_note(
                ClosedNote(
                    closed_at=timestamp(),
                    why=why,
                    what_ran=list(self.running()),
                    answers_lost=self.feed.unread,
                    interpreter=self.executions.has_lost,
                    shell=self.commands.has_lost,
                )
            )

    def _loss_reported(self, of: Literal["interpreter", "shell"]) -> None:
        """Note that a result has reported the loss of the interpreter or the shell."""
        if of == "interpreter":
            self._record.loss_reported()
        if self._closed is not None:
            left = structs.replace(self._closed, **{of: False})
            self._put_note(left if left.unreported else None)

    def _put_note(self, note: ClosedNote | None) -> None:
        self._closed = note
        if note is None:
            self.feed.drop_notice()
        self._notes.put(self.key, note)

    # -- what runs in it --------------------------------------------------------

    async def _wait_for_deletion(self) -> None:
        if self._predecessor is not None and self._predecessor.deleting:
            await self._wait_for_predecessor()

    async def _open_files(self) -> WorkspaceFiles:
        await self._wait_for_deletion()
        # An adopted sandbox runs already, and keeps its user.
        adopted = self.opening.facts
        facts = adopted or await self._runtime.prepare(self.opening.choice.image)
        own_uid = adopted is None and facts.any_uid
        prepare = self._data.prepare_files
        stored = await in_thread(self._executor, prepare, self.key, facts.uid, facts.gid, own_uid=own_uid)
        await in_turns(self._executor, self._data.change_owner(stored))
        limits = FileLimits(self._settings.max_message, self._settings.max_upload)
        return WorkspaceFiles(stored.root, uid=stored.uid, gid=stored.gid, limits=limits, commits=stored.commits)
