"""The interactive terminals of one workspace: opened, found by name, ended with it."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from posixpath import join
from typing import Protocol

from msgspec import structs

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, LimitExceeded, SessionClosed, TerminalError, UnknownTerminal
from kernelbridge.runtimes.contract import Process, Sandbox
from kernelbridge.workspace.command_outcome import LossCause
from kernelbridge.workspace.python_env import PythonEnvironment
from kernelbridge.workspace.session_state import TerminalState
from kernelbridge.workspace.shell.command_files import why
from kernelbridge.workspace.state_file import StateFile
from kernelbridge.workspace.terminals import shell_rc
from kernelbridge.workspace.terminals.terminal import Size, Terminal, Viewer

MAX_TERMINALS = 8
"""Terminals that one session may have."""

Started = tuple[Sandbox, Process]
_Left = tuple[TerminalState, Callable[[str, LossCause], None]]
"""One of an earlier server, and what is told if it is gone."""


class TerminalRecord(Protocol):
    """What another server needs to go on with them."""

    def set_terminals(self, terminals: Iterable[TerminalState]) -> None:
        """Take note which there are."""
        ...

    async def written(self) -> None:
        """Wait until that is on disk."""
        ...

    def scrollback(self, process: str) -> StateFile:
        """Give the file for what the terminal of this process has shown last."""
        ...


InSandbox = Callable[[Callable[[Sandbox, PythonEnvironment], Awaitable[Started]]], Awaitable[Started]]
"""Start something in the workspace's sandbox, which is started first if need be; see `Workspace`."""
Rejoin = Callable[[str], Awaitable[Started]]
"""Give a program of an earlier server; raises `TerminalError` if it is gone, `SandboxError` if the sandbox is."""


async def start_shell(sandbox: Sandbox, size: Size, *, env: Mapping[str, str], files_host: Path) -> Process:
    """Start an interactive shell. `files_host` is the directory that the sandbox sees as its `sockets_path`.

    Raises `SandboxError`, or `TerminalError` when the disk is full.
    """
    shell = sandbox.facts.shell
    _write_setup(files_host / shell_rc.FILE, shell_rc.setup(shell))
    file = join(sandbox.sockets_path, shell_rc.FILE)
    return await sandbox.exec(
        shell_rc.argv(shell, file),
        env={**env, **shell_rc.environment(shell, file, {**sandbox.facts.env, **env})},
        cwd=sandbox.workspace_path,
        tty=True,
        rows=size.rows,
        cols=size.cols,
    )


def _write_setup(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(path, "w", encoding="utf-8", opener=lambda name, _: os.open(name, flags, 0o600)) as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)  # whatever the umask says: the sandbox's user has to read it
    except FileExistsError:
        pass  # an earlier terminal's; or the user's, whose shell reads what they like
    except OSError as exc:
        path.unlink(missing_ok=True)
        reason = f"its shell could not be set up: {why(exc)}"
        raise TerminalError("The terminal could not be opened", reason) from exc


class Terminals:
    """All terminals of a workspace. A name is free again when its terminal begins to end."""

    def __init__(self, in_sandbox: InSandbox, rejoin: Rejoin, *, files_host: Path, record: TerminalRecord) -> None:
        """`files_host` is the directory that the sandbox sees as its `sockets_path`."""
        self._in_sandbox = in_sandbox
        self._rejoin = rejoin
        self._files_host = files_host
        self._open: dict[str, Terminal] = {}
        self._lives: dict[Terminal, asyncio.Task[None]] = {}
        self._tasks = TaskSet()
        self._record = record
        self._states: dict[Terminal, TerminalState] = {}
        self._spools: dict[Terminal, StateFile] = {}
        self._closed = self._leaving = False

    @property
    def ids(self) -> list[str]:
        """Those that are open."""
        return list(self._open)

    @property
    def busy(self) -> bool:
        """Whether one lives, be it shown to anybody or not."""
        return bool(self._lives)

    def open(self, viewer: Viewer, terminal_id: str | None, size: Size) -> None:
        """Show the terminal of this name to a connection, or a new one; the connection is told when it is open.

        Raises `LimitExceeded` and `TerminalError`.
        """
        if self._closed:
            raise SessionClosed(TerminalError.code)
        terminal = None if terminal_id is None else self._open.get(terminal_id)
        if terminal is None:
            terminal = self._make(terminal_id or self._free_name(), size)
        self.resize(terminal, size)
        terminal.attach(viewer)

    def resize(self, terminal: Terminal, size: Size) -> None:
        """Set the size of a terminal."""
        terminal.resize(size)
        if terminal in self._states:
            self._note()

    def find(self, terminal_id: str) -> Terminal:
        """Give an open terminal; raises `UnknownTerminal`."""
        terminal = self._open.get(terminal_id)
        if terminal is None:
            raise UnknownTerminal(
                f"There is no terminal {terminal_id!r} in this session", "it has ended, or was never opened"
            )
        return terminal

    def end(self) -> None:
        """Take note that the session ends: every terminal does, and no other is opened. Idempotent; no I/O."""
        self._closed = True
        for terminal in list(self._lives):
            terminal.end("session_closed")

    async def aclose(self) -> None:
        """Wait until every terminal has ended, after `end`. Idempotent."""
        self.end()
        if self._lives:
            await asyncio.wait(list(self._lives.values()))
        await self._tasks.aclose()

    def finish(self) -> None:
        """Open no other: they are left to the next server, those included that cannot be reached now."""
        self._closed = self._leaving = True

    async def leave(self) -> None:
        """Leave them all to another server, after `finish`."""
        for terminal in self._lives:
            terminal.leave()
        await self._tasks.aclose()
        for spool in self._spools.values():
            spool.close()

    def adopt(self, states: Iterable[TerminalState], lost: Callable[[str, LossCause], None]) -> None:
        """Go on with those of an earlier server, before another is opened; `lost` is told of those that are gone."""
        for state in states:
            self._begin(state.id, Size(state.rows, state.cols), (state, lost))

    def _make(self, terminal_id: str, size: Size) -> Terminal:
        if len(self._lives) >= MAX_TERMINALS:
            raise LimitExceeded(
                "Too many terminals are open in this session",
                f"the limit is {MAX_TERMINALS}; end one with `close_terminal`",
            )
        return self._begin(terminal_id, size, None)

    def _begin(self, terminal_id: str, size: Size, left: _Left | None) -> Terminal:
        # The last one of this name may still be ending: its news come first.
        earlier = [life for other, life in self._lives.items() if other.id == terminal_id]
        terminal = Terminal(terminal_id, size, on_ending=lambda: self._forget(terminal), adopted=left is not None)
        self._open[terminal_id] = terminal
        if left is not None:
            self._states[terminal] = left[0]
        life = self._lives[terminal] = self._tasks.create(self._live(terminal, earlier, left))
        life.add_done_callback(lambda _: self._lives.pop(terminal))
        return terminal

    async def _live(self, terminal: Terminal, earlier: list[asyncio.Task[None]], left: _Left | None) -> None:
        async def start(size: Size) -> Started:
            sandbox, process = await (self._start(size) if left is None else self._take(left))
            spool = self._spools[terminal] = self._record.scrollback(process.handle)
            spool.open()
            if left is None:
                spool.empty()
            terminal.replay.spool(spool, spool.read())
            self._states[terminal] = TerminalState(terminal.id, process.handle, size.rows, size.cols)
            self._note()
            await self._record.written()  # before anybody hears that it is open
            return sandbox, process

        if earlier:
            await asyncio.wait(earlier)
        await terminal.run(start)

    async def _start(self, size: Size) -> Started:
        async def start(sandbox: Sandbox, python: PythonEnvironment) -> Started:
            return sandbox, await start_shell(sandbox, size, env=python.env, files_host=self._files_host)

        return await self._in_sandbox(start)

    async def _take(self, left: _Left) -> Started:
        state, lost = left
        try:
            return await self._rejoin(state.process)
        except KernelBridgeError as exc:
            if self._leaving:
                raise asyncio.CancelledError from exc  # viewers are not told of an end: the next server shows it again
            lost(state.id, "shell_exited" if isinstance(exc, TerminalError) else "sandbox_lost")
            raise

    def _note(self) -> None:
        self._record.set_terminals(
            structs.replace(state, rows=terminal.size.rows, cols=terminal.size.cols)
            for terminal, state in self._states.items()
        )

    def _forget(self, terminal: Terminal) -> None:
        if self._open.get(terminal.id) is terminal:
            del self._open[terminal.id]
        if self._states.pop(terminal, None) is not None:
            self._note()
        if (spool := self._spools.pop(terminal, None)) is not None:
            spool.remove()

    def _free_name(self) -> str:
        while (name := secrets.token_hex(4)) in self._open:
            pass
        return name
