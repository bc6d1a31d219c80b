"""What the next server must know about each open session, on disk while the session is open.

    <data>/state/<id>.json   the session; replaced when its sandbox, kernel or shell changes, in a thread
    <data>/state/<id>.cell   the running cell; overwritten in place
    <data>/state/<id>.shell  the command that runs in the session's shell, likewise; made with the first command
    <data>/state/<id>.output what the command's terminal has shown so far, up to a limit
    <data>/state/<id>.shown… what an interactive terminal has shown last

A cell is recorded before it is sent to its kernel. Overwriting 200 bytes takes 30 µs on the event loop (99 % within
0.1 ms; at most 18 ms beside a program that keeps the disk busy with `fsync`). Waiting for a thread would cost every
cell more. Making and renaming a file takes 0.4 ms, and up to 150 ms: a thread does that.

No file is made durable: a server can end, but no sandbox outlives the machine. Only the server can read the files. A
file that cannot be written has no effect while this server runs.
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
from kernelbridge.identity.principal import Principal
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.runtimes.contract import PreviousSandbox, Sandbox
from kernelbridge.workspace.adoption.session_state import (
    VERSION,
    RunningCell,
    RunningCommand,
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
from kernelbridge.workspace.adoption.state_file import StateFile
from kernelbridge.workspace.options import Choice
from kernelbridge.workspace.session_key import SessionKey

log = structlog.get_logger(__name__)

_SESSION, _CELL, _SHELL, _OUTPUT = ".json", ".cell", ".shell", ".output"
_SHOWN = ".shown"
_NONE = write_running(None)
MOST = 1 << 20
"""Bytes of a file that are read; a sound one is smaller."""


@dataclass(frozen=True, slots=True)
class PreviousSession:
    """A session that was open when an earlier server ended."""

    key: SessionKey
    state: SessionState
    cell: RunningCell | None
    """The cell that ran, or that ended before its answer was sent."""
    command: RunningCommand | None = None
    """The terminal command that ran, or that ended before its answer was sent."""
    output: bytes = b""
    """The output of the command so far."""

    def without_sandbox(self) -> PreviousSession:
        """Return the session as it is after the end of its sandbox."""
        return replace(self, state=without_sandbox(self.state))


class Record:
    """The files of one session. No method raises; a file that cannot be written is logged."""

    def __init__(
        self,
        directory: Path,
        key: SessionKey,
        *,
        created: str,
        runtime: str,
        seq: Callable[[], int],
        executor: Executor,
        max_output: int = 1 << 20,
    ) -> None:
        """Record nothing yet.

        `seq` returns a number that no event reaches before the session is recorded again. `max_output` is how many
        bytes of a running command's output are kept for the next server.
        """
        self._executor = executor
        self._due: deque[bytes] = deque(maxlen=1)
        self._lock = threading.Lock()  # held by the thread that writes or removes files
        self._work: Future[None] | None = None
        self._key = key
        self._created = created
        self._runtime = runtime
        self._seq = seq
        self._path = directory / f"{key.workspace_id}{_SESSION}"
        self._cell = StateFile(self._path.with_suffix(_CELL), failed=self._failed)
        self._command = StateFile(self._path.with_suffix(_SHELL), failed=self._failed)
        self._output = StateFile(self._path.with_suffix(_OUTPUT), failed=self._failed)
        self._max_output = max_output
        self._state: SessionState | None = None
        self._running: RunningCell | None = None
        self._over = False

    def adopt(self, state: SessionState, cell: RunningCell | None) -> None:
        """Continue an earlier server's record; the cell and the command stay in it until they are answered."""
        self._state, self._running = structs.replace(state, runtime=self._runtime), cell
        self._cell.open()
        if state.shell is not None:
            self._command.open()
            self._output.open()
        self.write()

    def opened(
        self, choice: Choice, sandbox: Sandbox, *, linger: float | None = None, keep_while_running: bool = False
    ) -> None:
        """Record that a sandbox runs, unless the session has ended meanwhile; for the rest see `set_linger`."""
        if self._over:
            return
        earlier = self._state
        self._state = SessionState(
            version=VERSION,
            principal=self._key.principal.key,
            session_id=self._key.session_id,
            created=self._created,
            runtime=self._runtime,
            seq=0,
            choice=choice,
            sandbox=PreviousSandbox(sandbox.id, sandbox.facts),
            kernel=None,
            had_shell=False,
            incarnation=0 if earlier is None else earlier.incarnation,
            lost=None if earlier is None else earlier.lost,
            linger=linger,
            keep_while_running=keep_while_running,
        )
        self._cell.open()
        self.write()

    def set_linger(self, linger: float | None, *, keep_while_running: bool) -> None:
        """Record how long the session stays open without a connection, and whether while something runs."""
        self._change(linger=linger, keep_while_running=keep_while_running)

    def sandbox_lost(self) -> None:
        """Record that the sandbox ended by itself."""
        if self._state is not None:
            self._state = without_sandbox(self._state)
            self.write()

    def kernel_started(self, identity: KernelIdentity) -> None:
        """Record which kernel runs."""
        self._change(kernel=identity, incarnation=identity.incarnation)

    def kernel_ended(self, how: str) -> None:
        """Record that the kernel ended, which no result has reported yet."""
        self._change(kernel=None, lost=how)

    def set_shell(self, shell: ShellState | None) -> None:
        """Record which shell runs, with its terminals; None if it has ended."""
        if self._state is not None and (self._state.shell != shell or not self._state.had_shell):
            self._change(shell=shell, had_shell=True)

    def loss_reported(self) -> None:
        """Record that a result has reported the end of the last kernel."""
        self._change(lost=None)

    def begins(self, cell: RunningCell) -> None:
        """Record the cell that is about to be sent."""
        if self._state is not None:
            self._cell.open()
        self._running = cell
        self._cell.write(write_running(self._running))

    def counts(self, left: float, now: float | None) -> None:
        """Record how much of the cell's time is left; `now` is None while its time does not run."""
        if self._running is not None:
            self._running = structs.replace(self._running, left=left, counted=now)
            self._cell.write(write_running(self._running))

    def ended(self) -> None:
        """Record that the cell has been answered."""
        self._running = None
        self._cell.write(_NONE)

    def command_begins(self, command: RunningCommand) -> None:
        """Record the command that is about to be given to the shell."""
        if self._state is not None:
            self._command.open()
            self._output.open()
        self._output.empty()
        self._command.write(write_running(command))

    def command_wrote(self, data: bytes) -> None:
        """Append to the output of the running command."""
        self._output.append(data, self._max_output)

    def command_ended(self) -> None:
        """Record that the command was answered."""
        self._command.write(_NONE)

    def set_terminals(self, terminals: Iterable[TerminalState]) -> None:
        """Record which interactive terminals are open."""
        found = tuple(terminals)
        if self._state is not None and self._state.terminals != found:
            self._change(terminals=found)

    def shells_reported(self) -> None:
        """Record that the end of an earlier server's terminals and command has been reported."""
        if self._state is not None:
            self._command.open()
        self.command_ended()
        self.set_terminals(())

    def scrollback(self, process: str) -> StateFile:
        """Return the file for what the terminal of this process has shown last."""
        return StateFile(self._path.with_suffix(f"{_SHOWN}{process}"), failed=self._failed)

    def write(self) -> None:
        """Write the session's file in a thread; see `written`."""
        if self._state is not None:
            self._state = structs.replace(self._state, seq=self._seq())
            self._due.append(write_session(self._state))
            self._work = self._executor.submit(self._write)

    async def written(self) -> None:
        """Wait until everything that was recorded is on disk."""
        if self._work is not None and not self._work.done():
            await asyncio.shield(asyncio.wrap_future(self._work))

    def leave(self) -> None:
        """Close the files, and leave them to another server; call `written` next. Idempotent."""
        self._cell.close()
        self._command.close()
        self._output.close()
        self._state, self._over = None, True

    def remove(self) -> None:
        """Remove the files: no server takes the session over; call `written` next. Idempotent."""
        self.leave()
        self._due.clear()
        self._work = self._executor.submit(self._unlink)

    def _write(self) -> None:
        """Replace the session's file by its latest content; in a thread."""
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
        log.warning("session_not_recorded", workspace=self._key.workspace_id, error=exc.strerror)


def previous_sessions(directory: Path) -> Iterator[PreviousSession]:
    """Return the sessions that an earlier server left open. Damaged files are removed, and logged; blocking.

    Raises `ConfigError` for a file that cannot be read.
    """
    for path in sorted(directory.iterdir()):
        if path.suffix != _SESSION:
            continue
        try:
            session = _read_session(path)
        except OSError as exc:  # its content may be sound
            raise ConfigError(
                f"The record of an open session, {path}, cannot be read",
                f"{exc.strerror}; fix that, or remove the file (the session then loses its variables, not its files)",
            ) from exc
        except ValueError as exc:
            log.warning("session_not_adopted", workspace=path.stem, error=str(exc))
            path.unlink(missing_ok=True)
            continue
        yield session
    known = {path.stem for path in directory.iterdir() if path.suffix == _SESSION}
    for path in directory.iterdir():
        of_session = path.suffix in {_CELL, _SHELL, _OUTPUT} or path.suffix.startswith(_SHOWN)
        if path.suffix != _SESSION and not (of_session and path.stem in known):
            path.unlink(missing_ok=True)


def count_previous_sandboxes(directory: Path, runtime: str) -> int:
    """Count the open sessions with a sandbox that an earlier server made with `runtime`; see `previous_sessions`."""
    return sum(
        found.state.runtime == runtime and found.state.sandbox is not None for found in previous_sessions(directory)
    )


def _read_session(path: Path) -> PreviousSession:
    state = read_session(_read(path))
    key = SessionKey(Principal.of_key(state.principal), state.session_id)
    if key.workspace_id != path.stem:
        raise ValueError("it belongs to another session")
    cell, command = _read_running(path, _CELL, RunningCell), _read_running(path, _SHELL, RunningCommand)
    output = b""
    if command is not None:
        with contextlib.suppress(FileNotFoundError):
            output = path.with_suffix(_OUTPUT).read_bytes()
    return PreviousSession(key, state, cell, command, output)


def _read_running(path: Path, suffix: str, kind: type[T]) -> T | None:
    try:
        return read_running(_read(path.with_suffix(suffix)), kind)
    except FileNotFoundError:  # nothing ran, or the file could not be made, which was logged
        return None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST)
