"""The terminals of one shell: what it reads from, what it writes on, and those that background jobs keep."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.contract import Sandbox, Terminal
from kernelbridge.terminal_text import TerminalDecoder
from kernelbridge.workspace.late_text import LateText
from kernelbridge.workspace.shell import script

_JOB_TERMINALS = 7
"""Terminals that background jobs may have besides the first one, which the shell reads from."""


class OpenTerminals(NamedTuple):
    """The terminals of a shell that runs."""

    keys: Terminal
    """What it reads from."""
    screen: Terminal
    """What it writes on; at first the same."""
    jobs: tuple[Terminal, ...] = ()
    """What only background jobs write on."""


class ShellTerminals:
    """Reads the terminals of one shell, and moves the shell to a new one when a job keeps the one that it writes on.

    So the output of a job is never taken for that of a later command.
    """

    def __init__(self, sandbox: Sandbox, terminals: OpenTerminals, on_data: Callable[[bytes], None]) -> None:
        """`on_data` is called with what is written on the shell's terminal."""
        self._sandbox = sandbox
        self._on_data = on_data
        self._late = LateText("background jobs")
        self._jobs: set[_Screen] = set()
        self._screen = self._keys = _Screen(terminals.screen, on_data)
        if terminals.keys is not terminals.screen:
            self._keys = _Screen(terminals.keys, on_data)
            self._leave_to_jobs(self._keys)
        for terminal in terminals.jobs:
            self._leave_to_jobs(_Screen(terminal, on_data))
        self.on_change: Callable[[], None] = lambda: None
        """Called when a later server would have to know other terminals."""

    @property
    def path(self) -> str:
        """The name, inside the sandbox, of the terminal that the shell writes on."""
        return self._screen.terminal.path

    @property
    def paths(self) -> tuple[str, str, tuple[str, ...]]:
        """The names of what is in `OpenTerminals`."""
        return self._keys.terminal.path, self.path, tuple(screen.terminal.path for screen in self._jobs)

    def close_to_readers(self) -> None:
        """Let no program open the terminal that the shell reads from, once the shell has it open."""
        self._keys.terminal.only_for_writing()

    async def write(self, data: bytes) -> None:
        """Type `data`; raises `BrokenPipeError` when the shell's terminal is closed."""
        await self._keys.terminal.write(data)

    async def move(self, written: bytes) -> None:
        """Leave the terminal to a background job that writes on it, and move the shell to another.

        `written` is what the job has written since the end of its command. Where no other terminal may be opened, both
        share it.
        """
        if len(self._jobs) >= _JOB_TERMINALS:
            return
        try:
            terminal = self._sandbox.open_terminal()
        except SandboxError:
            return
        terminal.only_for_writing()
        left, self._screen = self._screen, _Screen(terminal, self._on_data)
        self._leave_to_jobs(left)
        left.on_data(written)
        self.on_change()
        with contextlib.suppress(BrokenPipeError):  # the shell has ended
            await self.write(script.move(terminal.path))

    def take_late(self) -> str:
        """Return what jobs have written since the last call, with escape sequences."""
        return self._late.take()

    async def drain(self, seconds: float) -> None:
        """Wait, `seconds` at most, for all output on the shell's terminal when no program has it open any more."""
        self._screen.terminal.release()
        await asyncio.wait({self._screen.over}, timeout=seconds)

    async def aclose(self, *, leave: bool = False) -> None:
        """Close all terminals, or with `leave` leave them to another server. Idempotent."""
        for screen in {self._keys, self._screen, *self._jobs}:
            await screen.aclose(leave=leave)

    def _leave_to_jobs(self, screen: _Screen) -> None:
        decoder = TerminalDecoder()
        screen.on_data = lambda data: self._late.add(decoder.decode(data))
        if screen is not self._keys:
            self._jobs.add(screen)
            screen.over.add_done_callback(lambda _: self._jobs.discard(screen))
            screen.close_at_end()


class _Screen:
    """A terminal that is read all the time: a background job must not wait because nobody reads."""

    def __init__(self, terminal: Terminal, on_data: Callable[[bytes], None]) -> None:
        self.terminal = terminal
        self.on_data = on_data
        """Called with what is written on it."""
        self.over = asyncio.get_running_loop().create_task(self._read())
        """Done when no program has it open any more."""
        self._closes = False

    def close_at_end(self) -> None:
        """Close it when the last program that has it open has ended."""
        self._closes = True
        self.terminal.release()

    async def aclose(self, *, leave: bool) -> None:
        """Close it, or with `leave` leave it to another server. Idempotent."""
        self.over.cancel()
        await asyncio.wait({self.over})
        if leave:
            self.terminal.leave()
        else:
            self.terminal.close()

    async def _read(self) -> None:
        while data := await self.terminal.read():
            self.on_data(data)
        if self._closes:
            self.terminal.close()
