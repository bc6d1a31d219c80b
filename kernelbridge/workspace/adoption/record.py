"""What another server must know of each open session, on disk while it is open.

    <data>/state/<id>.json   replaced when the session's sandbox or interpreter changes, in a thread
    <data>/state/<id>.cell   the running cell; overwritten in place, for a cell takes less than a millisecond
    <data>/state/<id>.shell  the command that runs in the session's shell, likewise; made with the first command
    <data>/state/<id>.output what its terminal has said since it was given, up to a limit
    <data>/state/<id>.shown… what an interactive terminal has shown last

A cell must be noted before its kernel may run it. Overwriting 200 bytes takes 30 µs on the event loop (99 % within
0.1 ms; at most 18 ms beside a program that keeps the disk busy with `fsync`): to hand that to a thread and wait for it
would cost every cell more. Making a file and renaming it takes 0.4 ms, and up to 150 ms: that is for a thread.

None is made durable: they are for the end of a server, not of the machine, which no sandbox outlives. Only the
server can read them. One that cannot be written costs nothing while the server runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from msgspec import structs

from kernelbridge.errors import ConfigError
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace.cells.queue import Job
from kernelbridge.workspace.options import Choice
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.session_state import (
    VERSION,
    ChoiceState,
    RunningCell,
    RunningCommand,
    SandboxState,
    SessionState,
    ShellState,
    T,
    TerminalState,
    read_running,
    read_session,
    without_sandbox,
    write_running,
    write_session,
)
from kernelbridge.workspace.state_file import StateFile

log = structlog.get_logger(__name__)

_SESSION, _CELL, _SHELL, _OUTPUT = ".json", ".cell", ".shell", ".output"
_SHOWN = ".shown"
_NONE = write_running(None)
MOST = 1 << 20
"""Bytes of a file that is read: one is smaller, whoever wrote it."""


@dataclass(frozen=True, slots=True)
class PreviousSession:
    """A session that was open when an earlier server ended."""

    key: SessionKey
    state: SessionState
    cell: RunningCell | None
    """What ran in its interpreter, or ended without an answer."""
    command: RunningCommand | None = None
    """What ran in its shell, likewise."""
    output: bytes = b""
    """What that had said."""

    def without_sandbox(self) -> PreviousSession:
        """Give what is left when the sandbox is gone."""
        return replace(self, state=without_sandbox(self.state))


class Record:
    """The files of one session. Nothing here raises; what cannot be written is logged."""

    def __init__(
        self,
        directory: Path,
        key: SessionKey,
        *,
        created: str,
        runtime: str,
        seq: Callable[[], int],
        executor: Executor,
        spool: int = 1 << 20,
    ) -> None:
        """`seq` gives a number that no event will reach before this is written again.

        `spool`: bytes of a running command's output that another server is to have.
        """
        self._executor = executor
        self._due: deque[bytes] = deque(maxlen=1)
        self._lock = threading.Lock()  # held by the thread that works on the session's file
        self._work: Future[None] | None = None
        self._key = key
        self._created = created
        self._runtime = runtime
        self._seq = seq
        self._path = directory / f"{key.workspace_id}{_SESSION}"
        self._cell = StateFile(self._path.with_suffix(_CELL), failed=self._failed)
        self._command = StateFile(self._path.with_suffix(_SHELL), failed=self._failed)
        self._output = StateFile(self._path.with_suffix(_OUTPUT), failed=self._failed)
        self._spool = spool
        self._state: SessionState | None = None
        self._running: RunningCell | None = None
        self._stay: tuple[float | None, bool] = (None, False)
        self._over = False

    def adopt(self, state: SessionState, cell: RunningCell | None) -> None:
        """Go on with what an earlier server has noted; the cell and the command are kept until they are answered."""
        self._state, self._running = structs.replace(state, runtime=self._runtime), cell
        self._stay = (state.linger, state.keep_while_running)
        self._cell.open()
        if state.shell is not None:
            self._command.open()
            self._output.open()
        self.write()

    def opened(self, choice: Choice, sandbox: Sandbox) -> None:
        """Note that a sandbox runs, unless the session has ended meanwhile."""
        if self._over:
            return
        earlier = self._state
        self._state = SessionState(
            version=VERSION,
            principal=self._key.principal,
            session_id=self._key.session_id,
            created=self._created,
            runtime=self._runtime,
            seq=0,
            choice=ChoiceState.of(choice),
            sandbox=SandboxState(sandbox.id, sandbox.facts),
            kernel=None,
            had_shell=False,
            incarnation=0 if earlier is None else earlier.incarnation,
            lost=None if earlier is None else earlier.lost,
            linger=self._stay[0],
            keep_while_running=self._stay[1],
        )
        self._cell.open()
        self.write()

    def stays(self, linger: float | None, *, keep_while_running: bool) -> None:
        """Note how long it lives on after its last connection, and whether while something runs."""
        if self._stay != (linger, keep_while_running):
            self._stay = (linger, keep_while_running)
            self._change(linger=linger, keep_while_running=keep_while_running)

    def sandbox_lost(self) -> None:
        """Note that the sandbox has ended by itself."""
        if self._state is not None:
            self._state = without_sandbox(self._state)
            self.write()

    def kernel_started(self, identity: KernelIdentity) -> None:
        """Note which kernel runs."""
        self._change(kernel=identity, incarnation=identity.incarnation)

    def kernel_ended(self, how: str) -> None:
        """Note that it runs no more, which nobody has been told yet."""
        self._change(kernel=None, lost=how)

    def shell_is(self, shell: ShellState | None) -> None:
        """Note which shell runs, and its terminals; None if none does any more."""
        if self._state is not None and (self._state.shell != shell or not self._state.had_shell):
            self._change(shell=shell, had_shell=True)

    def loss_told(self) -> None:
        """Note that a result has told of the last interpreter's end."""
        self._change(lost=None)

    def begins(self, msg_id: str, job: Job, since: float, began: float) -> None:
        """Note the cell that is about to be sent."""
        if self._state is not None:
            self._cell.open()
        self._running = RunningCell(
            msg_id,
            job.request_id,
            job.cell.stream,
            job.cell.allow_stdin,
            since=since,
            began=began,
            timeout=job.timeout,
            left=job.timeout,
            counted=began,
        )
        self._cell.write(write_running(self._running))

    def counts(self, left: float, now: float | None) -> None:
        """Note how much of its time is left, and whether that goes by."""
        if self._running is not None:
            self._running = structs.replace(self._running, left=left, counted=now)
            self._cell.write(write_running(self._running))

    def ended(self) -> None:
        """Note that it has been answered."""
        self._running = None
        self._cell.write(_NONE)

    def command_begins(self, command: RunningCommand) -> None:
        """Note the command that is about to be given to the shell."""
        if self._state is not None:
            self._command.open()
            self._output.open()
        self._output.empty()
        self._command.write(write_running(command))

    def command_wrote(self, data: bytes) -> None:
        """Keep what its terminal says."""
        self._output.append(data, self._spool)

    def command_ended(self) -> None:
        """Note that it was answered."""
        self._command.write(_NONE)

    def terminals_are(self, terminals: Iterable[TerminalState]) -> None:
        """Note which interactive terminals there are."""
        found = tuple(terminals)
        if self._state is not None and self._state.terminals != found:
            self._change(terminals=found)

    def shells_told(self) -> None:
        """Note that the end of an earlier server's terminals and command has been told."""
        if self._state is not None:
            self._command.open()
        self.command_ended()
        self.terminals_are(())

    def scrollback(self, process: str) -> StateFile:
        """Give the file for what the terminal of this process has shown last."""
        return StateFile(self._path.with_suffix(f"{_SHOWN}{process}"), failed=self._failed)

    def write(self) -> None:
        """Have the session's file written; see `written`."""
        if self._state is not None:
            self._state = structs.replace(self._state, seq=self._seq())
            self._due.append(write_session(self._state))
            self._work = self._executor.submit(self._write)

    async def written(self) -> None:
        """Wait until the files say all that has been noted."""
        if self._work is not None:
            await asyncio.shield(asyncio.wrap_future(self._work))

    def leave(self) -> None:
        """Release what is held, and leave the files to another server; `written` is to follow. Idempotent."""
        self._cell.close()
        self._command.close()
        self._output.close()
        self._state, self._over = None, True

    def remove(self) -> None:
        """Forget the session: it is not to be gone on with; `written` is to follow. Idempotent."""
        self.leave()
        self._due.clear()
        self._work = self._executor.submit(self._unlink)

    def _write(self) -> None:
        """Replace the session's file by the latest that is due; in a thread."""
        with self._lock, contextlib.suppress(IndexError):
            content = self._due.pop()
            part = self._path.with_suffix(".part")
            try:
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                with os.fdopen(fd, "wb") as file:
                    file.write(content)
                part.replace(self._path)
            except OSError as exc:
                self._failed(exc)

    def _unlink(self) -> None:
        with self._lock:
            shown = self._path.parent.glob(f"{self._path.stem}{_SHOWN}*")
            files = (self._path.with_suffix(suffix) for suffix in (_SESSION, _CELL, _SHELL, _OUTPUT))
            for path in (*files, *shown):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _change(self, **changes: object) -> None:
        if self._state is not None:
            self._state = structs.replace(self._state, **changes)
            self.write()

    def _failed(self, exc: OSError) -> None:
        log.warning("session_not_noted", workspace=self._key.workspace_id, error=exc.strerror)


def previous_sessions(directory: Path) -> Iterator[PreviousSession]:
    """Give the sessions that an earlier server has left. What makes no sense is removed, and logged; blocking.

    Raises `ConfigError` for what cannot be read.
    """
    for path in sorted(directory.iterdir()):
        if path.suffix != _SESSION:
            continue
        try:
            session = _read_left(path)
        except OSError as exc:  # no reason to throw away what may be sound
            raise ConfigError(
                f"The note of an open session, {path}, cannot be read",
                f"{exc.strerror}; put that right, or remove the file: the session then begins anew, with its files",
            ) from exc
        except ValueError as exc:
            log.warning("session_not_taken_over", workspace=path.stem, error=str(exc))
            path.unlink(missing_ok=True)
            continue
        yield session
    known = {path.stem for path in directory.iterdir() if path.suffix == _SESSION}
    for path in directory.iterdir():
        of_session = path.suffix in {_CELL, _SHELL, _OUTPUT} or path.suffix.startswith(_SHOWN)
        if path.suffix != _SESSION and not (of_session and path.stem in known):
            path.unlink(missing_ok=True)


def left_in_sandboxes(directory: Path, runtime: str) -> int:
    """Count the sessions whose sandboxes an earlier server has made with a runtime; like `previous_sessions`."""
    return sum(
        left.state.runtime == runtime and left.state.sandbox is not None for left in previous_sessions(directory)
    )


def _read_left(path: Path) -> PreviousSession:
    state = read_session(_read(path))
    key = SessionKey(state.principal, state.session_id)
    if key.workspace_id != path.stem:
        raise ValueError("it is another session's")
    cell, command = _read_running(path, _CELL, RunningCell), _read_running(path, _SHELL, RunningCommand)
    output = b""
    if command is not None:
        with contextlib.suppress(FileNotFoundError):
            output = path.with_suffix(_OUTPUT).read_bytes()
    return PreviousSession(key, state, cell, command, output)


def _read_running(path: Path, suffix: str, kind: type[T]) -> T | None:
    try:
        return read_running(_read(path.with_suffix(suffix)), kind)
    except FileNotFoundError:  # there was none, or it could not be made, which was logged
        return None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST)
