"""The interactive terminals of one workspace: opened, found by name, and ended with the workspace."""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable, Iterable
from posixpath import join

from msgspec import structs

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, LimitExceeded, SessionClosed, TerminalError, UnknownTerminal
from kernelbridge.runtimes.contract import Process, Sandbox
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.adoption.session_state import TerminalState
from kernelbridge.workspace.adoption.state_file import StateFile
from kernelbridge.workspace.command_outcome import LossCause
from kernelbridge.workspace.python_env import PythonEnvironment
from kernelbridge.workspace.shell.script import is_bash
from kernelbridge.workspace.shell.texts import TERMINAL_SETUP
from kernelbridge.workspace.terminals.terminal import Size, Terminal, Viewer

MAX_TERMINALS = 8
"""Terminals that one session may have."""

Started = tuple[Sandbox, Process]
_Previous = tuple[TerminalState, Callable[[str, LossCause], None]]
"""A terminal of an earlier server, and what is called if it is gone."""


InSandbox = Callable[[Callable[[Sandbox, PythonEnvironment], Awaitable[Started]]], Awaitable[Started]]
"""Start something in the workspace's sandbox, which is started before if necessary; see `Launcher`."""
AdoptProgram = Callable[[str], Awaitable[Started]]
"""Adopt a program of an earlier server. Raises `TerminalError` if it is gone, `SandboxError` if the sandbox is."""


async def _start_shell(sandbox: Sandbox, python: PythonEnvironment, *, size: Size) -> Started:
    """Start an interactive shell that is not a login shell. Raises `SandboxError`.

    /etc/profile, which a login shell reads, sets PATH anew on Debian and loses the one that the sandbox gives.
    """
    shell, setup = sandbox.facts.shell, join(sandbox.shared.path, TERMINAL_SETUP)
    variables = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "SHELL": shell}
    own = {**sandbox.facts.env, **python.env}
    if not any(own.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG")):
        variables["LANG"] = "C.UTF-8"
    if not is_bash(shell):
        variables["ENV"] = setup
    process = await sandbox.exec(
        [shell, "--rcfile", setup, "-i"] if is_bash(shell) else [shell, "-i"],
        env={**python.env, **variables},
        cwd=sandbox.workspace_path,
        tty=True,
        rows=size.rows,
        cols=size.cols,
    )
    return sandbox, process


class Terminals:
    """All terminals of a workspace. A name is free again when its terminal begins to end."""

    def __init__(self, in_sandbox: InSandbox, adopt_program: AdoptProgram, record: Record) -> None:
        self._in_sandbox = in_sandbox
        self._adopt_program = adopt_program
        self._open: dict[str, Terminal] = {}
        self._lives: dict[Terminal, asyncio.Task[None]] = {}
        self._tasks = TaskSet()
        self._record = record
        self._states: dict[Terminal, TerminalState] = {}
        self._scrollbacks: dict[Terminal, StateFile] = {}
        self._closed = self._leaving = False

    @property
    def ids(self) -> list[str]:
        """The names of the open terminals."""
        return list(self._open)

    @property
    def busy(self) -> bool:
        """Whether a terminal is open or ending, attached or not."""
        return bool(self._lives)

    def open(self, viewer: Viewer, terminal_id: str | None, size: Size) -> None:
        """Attach a connection to the terminal of this name, or to a new one; `viewer.opened` is called when it is open.

        Raises `LimitExceeded` and `SessionClosed`.
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

    def find(self, terminal_id: str, *, ending: bool = False) -> Terminal:
        """Return an open terminal; raises `UnknownTerminal`.

        With `ending` also one whose end has not been told yet: what its user sends until then is no mistake.
        """
        terminal = self._open.get(terminal_id)
        if terminal is None and ending:
            terminal = next((each for each in self._lives if each.id == terminal_id), None)
        if terminal is None:
            raise UnknownTerminal(
                f"There is no terminal {terminal_id!r} in this session", "it has ended, or was never opened"
            )
        return terminal

    def end(self) -> None:
        """Begin to end all terminals, because the session ends, and open no other. Idempotent; no I/O."""
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
        """Open no more terminals: all are left to the next server, also those that this one cannot reach."""
        self._closed = self._leaving = True

    async def leave(self) -> None:
        """Leave all terminals to another server, after `finish`."""
        for terminal in self._lives:
            terminal.leave()
        await self._tasks.aclose()
        for file in self._scrollbacks.values():
            file.close()

    def adopt(self, states: Iterable[TerminalState], lost: Callable[[str, LossCause], None]) -> None:
        """Adopt terminals of an earlier server, before any is opened; `lost` is called for those that are gone."""
        for state in states:
            self._begin(state.id, Size(state.rows, state.cols), (state, lost))

    def _make(self, terminal_id: str, size: Size) -> Terminal:
        if len(self._lives) >= MAX_TERMINALS:
            raise LimitExceeded(
                "Too many terminals are open in this session",
                f"the limit is {MAX_TERMINALS}; end one with `close_terminal`",
            )
        return self._begin(terminal_id, size, None)

    def _begin(self, terminal_id: str, size: Size, previous: _Previous | None) -> Terminal:
        # The last terminal of this name may still be ending: its last events come first.
        earlier = [life for other, life in self._lives.items() if other.id == terminal_id]
        terminal = Terminal(terminal_id, size, on_ending=lambda: self._forget(terminal), adopted=previous is not None)
        self._open[terminal_id] = terminal
        if previous is not None:
            self._states[terminal] = previous[0]
        life = self._lives[terminal] = self._tasks.create(self._live(terminal, earlier, previous))
        life.add_done_callback(lambda _: self._lives.pop(terminal))
        return terminal

    async def _live(self, terminal: Terminal, earlier: list[asyncio.Task[None]], previous: _Previous | None) -> None:
        if earlier:
            await asyncio.wait(earlier)
        await terminal.run(functools.partial(self._start, terminal, previous))

    async def _start(self, terminal: Terminal, previous: _Previous | None, size: Size) -> Started:
        if previous is None:
            sandbox, process = await self._in_sandbox(functools.partial(_start_shell, size=size))
        else:
            sandbox, process = await self._adopt(previous)
        file = self._scrollbacks[terminal] = self._record.scrollback(process.id)
        file.open()
        if previous is None:
            file.empty()
        terminal.replay.keep_in(file)
        self._states[terminal] = TerminalState(terminal.id, process.id, size.rows, size.cols)
        self._note()
        await self._record.written()  # before any connection gets `terminal_opened`
        return sandbox, process

    async def _adopt(self, previous: _Previous) -> Started:
        state, lost = previous
        try:
            return await self._adopt_program(state.process)
        except KernelBridgeError as exc:
            if self._leaving:
                raise asyncio.CancelledError from exc  # no `terminal_closed`: the next server shows it again
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
        if (file := self._scrollbacks.pop(terminal, None)) is not None:
            file.remove()

    def _free_name(self) -> str:
        while (name := secrets.token_hex(4)) in self._open:
            pass
        return name
