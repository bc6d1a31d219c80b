"""The interactive terminals of one workspace: opened, found by name, ended with it."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from posixpath import join

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import LimitExceeded, TerminalError, UnknownTerminal
from kernelbridge.runtimes.base import Process, Sandbox
from kernelbridge.workspace.python_env import PythonEnvironment
from kernelbridge.workspace.shell.command_files import why
from kernelbridge.workspace.terminals import shell_rc
from kernelbridge.workspace.terminals.terminal import Size, Terminal, Viewer

MAX_TERMINALS = 8
"""Terminals that one session may have."""

Started = tuple[Sandbox, Process]
InSandbox = Callable[[Callable[[Sandbox, PythonEnvironment], Awaitable[Started]]], Awaitable[Started]]
"""Start something in the workspace's sandbox, which is started first if need be; see `Workspace`."""


async def start_shell(sandbox: Sandbox, size: Size, mark: str, *, env: Mapping[str, str], files_host: Path) -> Process:
    """Start an interactive shell. `files_host` is the directory that the sandbox sees as its `sockets_path`.

    Raises `SandboxError`, or `TerminalError` when the disk is full.
    """
    shell = sandbox.facts.shell
    _write_setup(files_host / shell_rc.FILE, shell_rc.setup(shell))
    file = join(sandbox.sockets_path, shell_rc.FILE)
    return await sandbox.exec(
        shell_rc.argv(shell, file),
        env={**env, **shell_rc.environment(shell, file, mark, {**sandbox.facts.env, **env})},
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

    def __init__(self, in_sandbox: InSandbox, *, files_host: Path, note: Callable[[list[str]], None]) -> None:
        """`files_host` is the directory that the sandbox sees as its `sockets_path`.

        `note` is told the names of those that another server would have to say the end of.
        """
        self._in_sandbox = in_sandbox
        self._files_host = files_host
        self._open: dict[str, Terminal] = {}
        self._lives: dict[Terminal, asyncio.Task[None]] = {}
        self._tasks = TaskSet()
        self._note = note
        self._unseen: list[str] = []
        """Those that ended with the session's server, and nobody was told."""
        self._closed = False

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
            raise TerminalError("The session is closed", "send the request again to open it anew")
        terminal = None if terminal_id is None else self._open.get(terminal_id)
        if terminal is None:
            terminal = self._make(terminal_id or self._free_name(), size)
        terminal.resize(size)
        terminal.attach(viewer)

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
        if not self._closed:
            self._unseen = [terminal.id for terminal in self._open.values() if not terminal.seen]
        self._closed = True
        for terminal in list(self._lives):
            terminal.end("session_closed")

    async def aclose(self) -> None:
        """Wait until every terminal has ended, after `end`. Idempotent."""
        self.end()
        if self._lives:
            await asyncio.wait(list(self._lives.values()))
        await self._tasks.aclose()

    def _make(self, terminal_id: str, size: Size) -> Terminal:
        if len(self._lives) >= MAX_TERMINALS:
            raise LimitExceeded(
                "Too many terminals are open in this session",
                f"the limit is {MAX_TERMINALS}; end one with `close_terminal`",
            )
        # The last one of this name may still be ending: its news come first.
        earlier = [life for other, life in self._lives.items() if other.id == terminal_id]
        terminal = Terminal(terminal_id, size, on_ending=lambda: self._forget(terminal))
        self._open[terminal_id] = terminal
        life = self._lives[terminal] = self._tasks.create(self._live(terminal, earlier))
        life.add_done_callback(lambda _: self._lives.pop(terminal))
        return terminal

    async def _live(self, terminal: Terminal, earlier: list[asyncio.Task[None]]) -> None:
        if earlier:
            await asyncio.wait(earlier)
        await terminal.run(self._start)

    async def _start(self, size: Size, mark: str) -> Started:
        async def start(sandbox: Sandbox, python: PythonEnvironment) -> Started:
            return sandbox, await start_shell(sandbox, size, mark, env=python.env, files_host=self._files_host)

        started = await self._in_sandbox(start)
        self._note(self.ids)
        return started

    def _forget(self, terminal: Terminal) -> None:
        if self._open.get(terminal.id) is terminal:
            del self._open[terminal.id]
            self._note([*self._open, *self._unseen])

    def _free_name(self) -> str:
        while (name := secrets.token_hex(4)) in self._open:
            pass
        return name
