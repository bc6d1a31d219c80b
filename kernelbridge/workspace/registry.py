"""All open sessions of a server: each has a workspace, which is closed some time after its last connection."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from kernelbridge.aio.tasks import TaskSet, Wait, all_within
from kernelbridge.aio.threads import in_turns
from kernelbridge.audit.audit import Audit, By
from kernelbridge.disk.limits import DiskLimits, Use
from kernelbridge.errors import FileError, KernelBridgeError, SandboxError
from kernelbridge.identity.principal import Principal
from kernelbridge.metrics import Metrics
from kernelbridge.protocol.base import timestamp
from kernelbridge.runtimes.contract import Runtime, Sandbox
from kernelbridge.settings.settings import Settings
from kernelbridge.workspace.adoption.record import PreviousSession, previous_sessions
from kernelbridge.workspace.adoption.session_state import RunningCell, SessionState
from kernelbridge.workspace.cells.run import Job
from kernelbridge.workspace.command_outcome import ReportLoss
from kernelbridge.workspace.egress import Egress
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.names import explained
from kernelbridge.workspace.journal.feed import Feed, Listener
from kernelbridge.workspace.lifecycle.admission import SessionLimits, check_reopening
from kernelbridge.workspace.lifecycle.closed_notes import ClosedNote, ClosedNotes
from kernelbridge.workspace.lifecycle.start_queue import StartQueue
from kernelbridge.workspace.options import SessionOptions, bounds_of, checked
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.shell.lane import PreviousCommand
from kernelbridge.workspace.workspace import Workspace

log = structlog.get_logger(__name__)

REACH = 5.0
"""How long the server waits for adopted kernels before it accepts clients, in seconds: what a cell writes before its
kernel is adopted is in its result, and not in events, and a client that returns at once should miss no event."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The result of closing a session."""

    was_open: bool
    files_deleted: bool
    """Whether there were files, and they have been deleted."""


class _Entry:
    """An open session's workspace and its connections."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.connections: set[str] = set()
        self.linger: asyncio.TimerHandle | None = None
        self.reached: Wait | None = None
        """Waits until the kernel of an earlier server is adopted."""

    def stay(self) -> None:
        if self.linger is not None:
            self.linger.cancel()
            self.linger = None


class PreviousClients(Protocol):
    """The clients of the earlier server. Their connections are closed, so clients that resume get their answers."""

    def job(self, workspace: Workspace, cell: RunningCell) -> Job:
        """Return a job for the cell that runs."""
        ...

    def command(self, workspace: Workspace, session: PreviousSession) -> PreviousCommand | None:
        """Return the command that runs in the shell, or None if it cannot be adopted."""
        ...

    def loss(self, workspace: Workspace, session: PreviousSession) -> ReportLoss:
        """Return what reports the end of shells and terminals."""
        ...


class Registry:
    """Maps (principal, sessionId) to its workspace."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        data: DataDirectory,
        settings: Settings,
        executor: Executor,
        egress: Egress | None = None,
        on_use: Callable[[SessionKey], None] | None = None,
        metrics: Metrics | None = None,
        audit: Audit | None = None,
    ) -> None:
        """Open no session yet.

        `egress` is the way out of sandboxes that have no network. `on_use` is called whenever the use of a session
        starts or ends.
        """
        self._runtime = runtime
        self._data = data
        self._settings = settings
        self._executor = executor
        self._egress = egress
        self.metrics = metrics or Metrics()
        self.audit = audit or Audit()
        self._bounds = bounds_of(settings, runtime.info)
        self._limits = SessionLimits(
            settings.max_sessions_per_user, settings.max_sessions, settings.max_stored_sessions_per_user
        )
        self._starts = StartQueue(settings.max_starts, self.metrics, rate=settings.start_rate)
        self._entries: dict[SessionKey, _Entry] = {}
        self._closing: dict[SessionKey, Workspace] = {}
        self._held: Counter[SessionKey] = Counter()
        self._made: Counter[SessionKey] = Counter()
        """Those of `_held` to which somebody writes."""
        self._only_files: set[SessionKey] = set()
        """Sessions of `_closing` that were not open: they have no sandbox."""
        self._on_use = on_use or (lambda _key: None)
        self._tasks = TaskSet()
        self._notes = ClosedNotes(data, executor, self._tasks)
        self._stopping = False

    @property
    def runtime_name(self) -> str:
        """The name of the runtime that makes the sandboxes."""
        return self._runtime.info.name

    def __len__(self) -> int:
        return len(self._entries)

    def attach(self, key: SessionKey, connection_id: str) -> Workspace:
        """Find or make a session's workspace, and attach the connection to it.

        Raises `LimitExceeded`, and `SandboxError` while the server stops.
        """
        entry = self._entries.get(key)
        if entry is None:
            if self._stopping:
                raise SandboxError("The server is stopping", "connect again when it is back")
            # Sessions that are being closed still have their sandboxes.
            check_reopening(0 if key not in self._closing else self._closing[key].reopened)
            self._check_limits(key)
            entry = self._enter(key)
            self.audit.opened(By(key.principal, key.session_id, connection_id))
        entry.stay()
        entry.connections.add(connection_id)
        entry.workspace.pausing.touch()
        return entry.workspace

    def _check_limits(self, key: SessionKey) -> None:
        self._limits.check(key, self._counted(), self._data.stored(key.principal))

    def _counted(self) -> set[SessionKey]:
        """Return the sessions that count in the limits: those that are open or being closed, or made by HTTP now."""
        return self._entries.keys() | (self._closing.keys() - self._only_files) | self._made.keys()

    def was_closed(self, key: SessionKey) -> bool:
        """Whether a session is not open, and clients that return must be told how it was closed."""
        return key not in self._entries and self._notes.get(key) is not None

    async def adopt(self, clients: PreviousClients) -> None:
        """Adopt the sessions that an earlier server left open, and remove its other sandboxes and files.

        Sessions without a connection after `linger` are closed. Sessions of another runtime lose their sandbox, which
        ends itself because no server comes back to it. Raises `SandboxError` or `RuntimeUnavailable`.
        """
        in_thread = asyncio.get_running_loop().run_in_executor
        await in_thread(self._executor, self._data.remove_leftovers)
        recorded = await in_thread(self._executor, lambda: list(previous_sessions(self._data.state)))
        ours = [found for found in recorded if found.state.runtime == self.runtime_name]
        known = {found.key.workspace_id: known for found in ours if (known := found.state.sandbox) is not None}
        sandboxes = await self._runtime.adopt(known)
        reclaimed = await self._runtime.reclaim()
        entries = {found.key: self._adopt(found, sandboxes.get(found.key.workspace_id), clients) for found in recorded}
        await all_within([entry.reached for entry in entries.values() if entry.reached is not None], REACH)
        for key, entry in entries.items():
            self.audit.opened(By(key.principal, key.session_id), adopted=True)
            self._count_down(key, entry)
        if recorded or reclaimed:
            log.info(
                "earlier_server",
                sessions=len(recorded),
                sandboxes=len(sandboxes),
                removed=reclaimed,
            )

    def _enter(self, key: SessionKey, state: SessionState | None = None) -> _Entry:
        closed = self._notes.get(key)
        if state is not None and closed is not None and closed.closed_at > state.created:
            # The earlier server ended while it closed this session, which therefore continues.
            self._notes.put(key, None)
            closed = None
        entry = self._entries[key] = _Entry(self._make(key, state, closed=closed))
        entry.workspace.call_on_rest(functools.partial(self._rested, key, entry))
        self._on_use(key)
        return entry

    def _adopt(self, found: PreviousSession, sandbox: Sandbox | None, clients: PreviousClients) -> _Entry:
        session = found if sandbox is not None else found.without_sandbox()
        entry = self._enter(session.key, session.state)
        workspace = entry.workspace
        job = None if session.cell is None else clients.job(workspace, session.cell)
        command = clients.command(workspace, session)
        lost = session if command is None else replace(session, command=None)
        report_loss = clients.loss(workspace, lost)
        entry.reached = workspace.adopt(session, sandbox, job, command, report_loss)
        return entry

    def _make(
        self, key: SessionKey, state: SessionState | None = None, *, closed: ClosedNote | None = None
    ) -> Workspace:
        feed = Feed(
            key.session_id,
            created=timestamp() if state is None else state.created,
            last_seq=0 if state is None else state.seq,
            journal_size=self._settings.journal_size,
            kept_size=self._settings.max_output,
            tasks=self._tasks,
        )
        return Workspace(
            key,
            runtime=self._runtime,
            data=self._data,
            settings=self._settings,
            bounds=self._bounds,
            executor=self._executor,
            feed=feed,
            starts=self._starts,
            notes=self._notes,
            egress=self._egress,
            # A session that is being closed is closed completely first; the new one waits for that.
            predecessor=self._closing.get(key),
            closed=closed,
        )

    def open(self, key: SessionKey, connection_id: str, options: SessionOptions) -> Workspace:
        """Open a session with `options`, and attach the connection; return it.

        Raises `BadRequest`, `SessionConflict` or `LimitExceeded`.
        """
        options = checked(options, self._bounds)
        workspace = self.attach(key, connection_id)
        workspace.open(options)
        return workspace

    def find(self, key: SessionKey) -> Workspace | None:
        """Return the workspace of an open session, or None; opens none."""
        entry = self._entries.get(key)
        return entry.workspace if entry is not None else None

    def connections(self, key: SessionKey) -> int:
        """Return how many connections use a session."""
        entry = self._entries.get(key)
        return len(entry.connections) if entry is not None else 0

    def closing(self, key: SessionKey) -> bool:
        """Whether the session is being closed."""
        return key in self._closing

    @property
    def starts_waiting(self) -> int:
        """How many sandboxes wait for their turn to start."""
        return self._starts.waiting

    def everything(self) -> list[Workspace]:
        """Return the workspaces of all principals: those that are open, and those that are being closed."""
        return [*(entry.workspace for entry in self._entries.values()), *self._closing.values()]

    async def kill(self, key: SessionKey) -> None:
        """Close a session of `everything` for an administrator; its files stay. Clients that return learn why.

        Cancellation does not cancel the close.
        """
        is_open = key in self._entries
        workspace = self._retire(key, why="an administrator closed it") if is_open else self._closing[key]
        closing = self._close_for(key, workspace, was_open=is_open, delete=False, done=lambda _: None)
        await asyncio.shield(self._tasks.create(closing))

    def live(self, principal: Principal) -> list[Workspace]:
        """Return a principal's open sessions."""
        return [entry.workspace for key, entry in self._entries.items() if key.principal == principal]

    @property
    def most_linger(self) -> float:
        """The largest `linger` that clients may choose, in seconds."""
        return self._bounds.most_linger

    async def has_files(self, key: SessionKey) -> bool:
        """Whether a session has stored files."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._data.has_files, key)

    async def disk(self, key: SessionKey) -> tuple[Use, DiskLimits]:
        """Return what a session uses of the disk, open or not, and what it may use. Raises `FileError`."""
        disk = self._data.disk.session(key.workspace_id, self._data.files(key))
        with explained("The disk that the session uses cannot be measured"):
            return await in_turns(self._executor, disk.measuring()), disk.limits

    def stored(self, principal: Principal) -> set[str]:
        """Return the ids of a principal's sessions that have files."""
        return set(self._data.stored(principal))

    def close(
        self,
        key: SessionKey,
        listener: Listener,
        *,
        delete_files: bool,
        done: Callable[[Closed | KernelBridgeError], None],
    ) -> asyncio.Task[None] | None:
        """Close a session, also if other connections use it; the next request opens it again.

        `done` is called once, when nothing of it runs any more, for the `listener` that asked; others get its status.
        If the session was not open and only has files, the caller must wait for the task that is returned: nothing else
        limits how many such sessions a client closes at a time.
        """
        was_open = key in self._entries
        only_files = not was_open and key not in self._closing
        if was_open:
            entry = self._entries[key]
            entry.workspace.feed.exclude(listener)
            # Only the other connections must be told.
            why = "another connection closed it" if entry.connections - {listener.id} else None
            workspace = self._retire(key, delete_files=delete_files, why=why, connection_id=listener.id)
        elif delete_files or key in self._closing:  # it is closing already, or has only files
            if key in self._closing:
                self._closing[key].feed.exclude(listener)
            workspace = self._end(key, "a client closed it", delete_files=delete_files, connection_id=listener.id)
        else:
            done(Closed(was_open=False, files_deleted=False))
            return None
        closing = self._tasks.create(self._close_for(key, workspace, was_open=was_open, delete=delete_files, done=done))
        return closing if only_files else None

    def _end(self, key: SessionKey, why: str, *, delete_files: bool, connection_id: str | None = None) -> Workspace:
        """Close a session that is not open, after the close that is under way, if there is one."""
        self._note_end(key, why, connection_id, delete_files=delete_files)
        if (closing := self._closing.get(key)) is None:
            self._only_files.add(key)
        elif closing.deleting or not delete_files:
            return closing
        workspace = self._closing[key] = self._make(key)
        workspace.begin_close(delete_files=delete_files)
        return workspace

    async def _close_for(
        self,
        key: SessionKey,
        workspace: Workspace,
        *,
        was_open: bool,
        delete: bool,
        done: Callable[[Closed | KernelBridgeError], None],
    ) -> None:
        try:
            await self._close(key, workspace)
        except FileError as exc:
            done(exc if delete else Closed(was_open=was_open, files_deleted=False))
        else:
            done(Closed(was_open=was_open, files_deleted=delete and workspace.files_deleted))

    # -- files that nobody uses -------------------------------------------------

    def in_use(self) -> set[SessionKey]:
        """Return the sessions that are open, or whose files are in use."""
        return set(self._entries) | set(self._closing) | set(self._held)

    def with_sandboxes(self) -> list[SessionKey]:
        """Return the sessions that may have a sandbox. Thread-safe."""
        # A session moves from one to the next in this order, and is in the next before it leaves the last. Each list is
        # made in one step.
        return [*list(self._entries), *list(self._closing)]

    @contextlib.asynccontextmanager
    async def using(self, key: SessionKey, *, writes: bool = False) -> AsyncIterator[None]:
        """Use the files of a session, open or not; wait while they are being deleted.

        With `writes`, which may make the session, it counts as open meanwhile: raises `LimitExceeded`.
        """
        if writes:
            self._check_limits(key)
            self._made[key] += 1
        self._held[key] += 1
        self._on_use(key)
        try:
            while (workspace := self._closing.get(key)) is not None and workspace.deleting:
                with contextlib.suppress(FileError):  # reported to the client that deletes them
                    await workspace.close()
            yield
        finally:
            self._held -= Counter((key,))
            if writes:
                self._made -= Counter((key,))
            self._on_use(key)

    async def delete_unused(self, key: SessionKey) -> bool:
        """Delete the files of a session that is not in use; return whether they were deleted. Raises `FileError`.

        Requests that arrive meanwhile wait, and then use a new session.
        """
        if self._stopping or key in self.in_use():
            return False
        await self._close(key, self._end(key, "nobody has used it for long", delete_files=True))
        return True

    def detach(self, connection_id: str) -> None:
        """Detach a closed connection from its sessions; those without another one are closed after `linger` seconds."""
        for key, entry in list(self._entries.items()):
            if connection_id not in entry.connections:
                continue
            entry.connections.discard(connection_id)
            entry.workspace.feed.leave(connection_id)
            if not entry.connections:
                self._count_down(key, entry)

    def _count_down(self, key: SessionKey, entry: _Entry) -> None:
        """Close a session without a connection after its linger, which starts when nothing runs if it is kept."""
        entry.stay()
        if not entry.workspace.kept:
            loop = asyncio.get_running_loop()
            linger = entry.workspace.opening.linger
            why = f"no client returned within {linger:g} s"
            entry.linger = loop.call_later(linger, self._expire, key, why)

    def _rested(self, key: SessionKey, entry: _Entry) -> None:
        """Start the linger of a session that was kept until now because something ran."""
        waits = not entry.connections and entry.linger is None and not self._stopping
        if waits and self._entries.get(key) is entry:
            self._count_down(key, entry)

    async def finish(self, seconds: float, *, keep: bool) -> None:
        """Accept no more work, and wait up to `seconds` for what runs, unless `keep`: `leave` then leaves it."""
        self._stopping = True
        ends = [end for entry in self._entries.values() for end in entry.workspace.finish(seconds, keep=keep)]
        await all_within([end.wait for end in ends if not end.is_set()], seconds)

    async def leave(self) -> None:
        """Leave the open sessions to the next server, after `finish`; wait for those that are being closed."""
        entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            entry.stay()
        await asyncio.gather(*(entry.workspace.leave() for entry in entries))
        await self.aclose()

    async def aclose(self) -> None:
        """Close all sessions; what runs is answered with cause `session_closed`. Idempotent."""
        self._stopping = True
        for key in list(self._entries):
            self._expire(key, "the server stopped")
        closed: set[Workspace] = set()
        while closing := set(self._closing.values()) - closed:  # one may have been opened again meanwhile
            await asyncio.gather(*(workspace.close() for workspace in closing), return_exceptions=True)
            closed |= closing
        await self._tasks.aclose()

    def _expire(self, key: SessionKey, why: str) -> None:
        self._tasks.create(self._close(key, self._retire(key, why=why)))

    def _retire(
        self, key: SessionKey, *, delete_files: bool = False, why: str | None, connection_id: str | None = None
    ) -> Workspace:
        entry = self._entries[key]
        self._note_end(key, why or "a client closed it", connection_id, delete_files=delete_files)
        entry.stay()
        self._closing[key] = entry.workspace
        del self._entries[key]
        self._on_use(key)
        self._only_files.discard(key)
        entry.workspace.begin_close(delete_files=delete_files, why=why)
        return entry.workspace

    def _note_end(self, key: SessionKey, why: str, connection_id: str | None, *, delete_files: bool) -> None:
        by = By(key.principal, key.session_id, connection_id)
        self.audit.destroyed(by, reason=why, files_deleted=delete_files)

    async def _close(self, key: SessionKey, workspace: Workspace) -> None:
        try:
            await workspace.close()
        finally:
            if self._closing.get(key) is workspace:
                del self._closing[key]
                self._only_files.discard(key)
