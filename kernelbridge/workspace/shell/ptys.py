"""The terminals of one shell: what it reads from, what it writes on, and those that it has left to background jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from kernelbridge.aio.turns import LoopWork
from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.contract import Sandbox, Terminal
from kernelbridge.terminal_text import TerminalDecoder, drawn
from kernelbridge.workspace.shell import script

_JOB_TERMINALS = 8
"""Terminals that background jobs may have; those of later ones are shared with the commands after them."""
_LATE_LIMIT = 1 << 20
"""Characters of background jobs' output that are kept until the next outcome."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The terminals of a shell that runs."""

    keys: Terminal
    """What it reads from."""
    screen: Terminal
    """What it writes on: at first the same."""
    jobs: tuple[Terminal, ...] = ()
    """Those that only background jobs write on."""
    left: bool = False
    """Whether `screen` is to be one of those, when the next command begins."""


class ShellTerminals:
    """Moves a shell from one terminal to the next, and keeps what jobs write on the old ones."""

    def __init__(self, sandbox: Sandbox, terminals: Taken, on_data: Callable[[bytes], None]) -> None:
        self._sandbox = sandbox
        self._on_data = on_data
        self._late: list[str] = []
        self._late_size = 0
        self._left = terminals.left
        self._jobs: set[_Screen] = set()
        """Those on which nobody but background jobs writes any more."""
        first = terminals.screen is terminals.keys
        self._screen = _Screen(terminals.screen, self._late_taker() if self._left else on_data)
        self._keys = self._screen if first else _Screen(terminals.keys, self._late_taker())
        """What the shell reads from."""
        if not first:
            self._jobs.add(self._keys)
        for terminal in terminals.jobs:
            self._end_with_jobs(_Screen(terminal, self._late_taker()))
        self.on_change: Callable[[], None] = lambda: None
        """Told when another server would have to know of other terminals."""

    @property
    def path(self) -> str:
        """The name of the one that the shell writes on, inside the sandbox."""
        return self._screen.terminal.path

    @property
    def paths(self) -> tuple[str, str, tuple[str, ...], bool]:
        """The names of what it reads from, of what it writes on, those of jobs, and whether the second is left."""
        jobs = tuple(screen.terminal.path for screen in self._jobs if screen is not self._keys)
        return self._keys.terminal.path, self.path, jobs, self._left

    def set_up(self) -> None:
        """Take note that the shell has opened what it reads from: nobody else is to read there."""
        self._keys.terminal.only_for_writing()

    async def write(self, data: bytes) -> None:
        """Type `data`; raises `BrokenPipeError` when the shell's terminal is closed."""
        await self._keys.terminal.write(data)

    def leave(self, written: bytes) -> None:
        """Leave the terminal to a background job, so that what it writes is not taken for the next command's.

        `written` is what has come from there since the end of the command that started it.
        """
        if len(self._jobs) < _JOB_TERMINALS:
            # At once, not when the next command moves: until then nothing else would take it.
            self._screen.on_data = take = self._late_taker()
            take(written)
            self._left = True
            self.on_change()

    async def move(self) -> None:
        """Take the shell to another terminal if the one that it writes on was left; raises `BrokenPipeError`."""
        if not self._left:
            return
        self._left = False
        left = self._screen
        try:
            terminal = self._sandbox.open_terminal()
        except SandboxError:
            left.on_data = self._on_data
            return  # there is none: then the terminal is shared
        terminal.only_for_writing()
        self._screen = _Screen(terminal, self._on_data)
        await self._keys.terminal.write(script.move(terminal.path))
        if left is self._keys:
            self._jobs.add(left)
        else:
            self._end_with_jobs(left)
        self.on_change()

    def take_late(self) -> LoopWork[str]:
        """Give what jobs have written since this was last asked, to be drawn as a terminal shows it."""
        late, size = "".join(self._late), self._late_size
        self._late, self._late_size = [], 0
        if size > _LATE_LIMIT:
            late += "\n[more output of background jobs was left out here]\n"
        return _drawn(late)

    async def drain(self, seconds: float) -> None:
        """Wait for all that was written on the shell's, when everything that had it open has ended."""
        self._screen.terminal.release()
        await asyncio.wait({self._screen.over}, timeout=seconds)

    async def aclose(self, *, leave: bool = False) -> None:
        """Close them all, or with `leave` let another server have them. Idempotent."""
        for screen in {self._keys, self._screen, *self._jobs}:
            await screen.aclose(leave=leave)

    def _end_with_jobs(self, screen: _Screen) -> None:
        self._jobs.add(screen)
        screen.over.add_done_callback(lambda _: self._jobs.discard(screen))
        screen.leave()

    def _late_taker(self) -> Callable[[bytes], None]:
        decoder = TerminalDecoder()

        def take(data: bytes) -> None:
            text = decoder.decode(data)[: _LATE_LIMIT + 1 - self._late_size]
            self._late_size += len(text)
            self._late.append(text)

        return take


class _Screen:
    """A terminal that is read all the time: a background job must not stand still for want of a reader."""

    def __init__(self, terminal: Terminal, on_data: Callable[[bytes], None]) -> None:
        self.terminal = terminal
        self.on_data = on_data
        """Takes what is written on it."""
        self.over = asyncio.get_running_loop().create_task(self._read())
        """Done when nobody has it open any more."""
        self._closes = False

    def leave(self) -> None:
        """Close it when the last that has it open has ended."""
        self._closes = True
        self.terminal.release()

    async def aclose(self, *, leave: bool) -> None:
        """Close it, or with `leave` let another server have it. Idempotent."""
        self.over.cancel()
        await asyncio.wait({self.over})
        if leave:
            self.terminal.leave()
        else:
            self.terminal.close()

    async def _read(self) -> None:
        while data := await self.terminal.read():
            self.on_data(data)
            await asyncio.sleep(0)  # the others' turn: where there is much to read, a read does not wait
        if self._closes:
            self.terminal.close()


def _drawn(text: str) -> LoopWork[str]:
    parts: list[str] = []
    for part in drawn(text):
        parts.append(part)
        yield part
    return "".join(parts)
