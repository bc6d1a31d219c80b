"""The terminals of one shell: what it reads from, what it writes on, and those that it has left to background jobs."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable

from kernelbridge.aio.turns import LoopWork
from kernelbridge.errors import SandboxError, TerminalError
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.runtimes.base import NO_ROOM, Process, Sandbox
from kernelbridge.terminal_text import TerminalDecoder, drawn
from kernelbridge.workspace.shell import script

_JOB_TERMINALS = 8
"""Terminals that are kept for background jobs; those of later ones are shared with the commands after them."""
_LATE_LIMIT = 1 << 20
"""Characters of background jobs' output that are kept until the next outcome."""

_READY_TIMEOUT = 10.0
"""Seconds to say its name."""
_NAME = re.compile(rb"(/dev/pts/[0-9]+)\r?\n")
_NOISE = 1 << 16


class ShellTerminals:
    """Moves a shell from one terminal to the next, and keeps what jobs write on the old ones."""

    def __init__(self, sandbox: Sandbox, screen: ScreenOnly, on_data: Callable[[bytes], None]) -> None:
        self._sandbox = sandbox
        self._on_data = on_data
        self._screens = [screen]
        """The last one is the shell's to write on; the others belong to background jobs."""
        self._keys = screen
        """What it reads from: the first."""
        self._opening: asyncio.Task[ScreenOnly] | None = None
        self._late: list[str] = []
        self._late_size = 0
        self.on_lost: Callable[[], None] = lambda: None
        """Told when one that the shell needs has ended, which nobody here asked it to."""
        screen.on_data, screen.on_lost = on_data, self._lost

    @property
    def path(self) -> str:
        """The name of the one that the shell writes on, inside the sandbox."""
        return self._screens[-1].path

    @property
    def opening(self) -> bool:
        """Whether one is being opened for the next command."""
        return self._opening is not None and not self._opening.done()

    async def write(self, data: bytes) -> None:
        """Type `data`; raises `BrokenPipeError` when the shell's terminal is gone."""
        await self._keys.write(data)

    def leave(self, written: bytes) -> None:
        """Leave the terminal to a background job, so that what it writes is not taken for the next command's.

        `written` is what has come from there since the end of the command that started it.
        """
        if len(self._screens) <= _JOB_TERMINALS:
            # At once, not when the next command moves: until then nothing else would take it.
            self._screens[-1].on_data = take = self._late_taker()
            take(written)
            if self._opening is None:  # else the one is still on its way that the last `move` did not wait for
                self._opening = asyncio.get_running_loop().create_task(ScreenOnly.open(self._sandbox, closed=True))

    async def move(self, seconds: float, *, unless: asyncio.Event) -> None:
        """Take the shell to the terminal that was opened since `leave`, if it was.

        Waits so long for it, `unless` that is not wanted any more.
        """
        opening = self._opening
        if opening is None:
            return
        unwanted = asyncio.ensure_future(unless.wait())
        try:
            await asyncio.wait({opening, unwanted}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unwanted.cancel()
        if not opening.done():
            if not unless.is_set():
                self._screens[-1].on_data = self._on_data
            return  # the engine does not answer: then the terminal is shared until it does
        self._opening = None
        try:
            screen = await opening
        except (TerminalError, SandboxError):
            self._screens[-1].on_data = self._on_data
            return  # e.g. no more processes can be started: then the terminal is shared
        self._screens[-1].on_lost = lambda: None
        self._screens.append(screen)
        screen.on_data = self._on_data
        screen.on_lost = self._keys.on_lost = self._lost
        with contextlib.suppress(BrokenPipeError):
            await self._keys.write(script.move(screen.path))

    def take_late(self) -> LoopWork[str]:
        """Give what jobs have written since this was last asked, to be drawn as a terminal shows it."""
        late, size = "".join(self._late), self._late_size
        self._late, self._late_size = [], 0
        if size > _LATE_LIMIT:
            late += "\n[more output of background jobs was left out here]\n"
        return _drawn(late)

    async def drain(self, seconds: float) -> None:
        """End the one that the shell writes on, and wait for what was written before to arrive."""
        await self._screens[-1].drain(seconds)

    async def aclose(self) -> None:
        """End them all. Idempotent."""
        if self._opening is not None:
            await asyncio.wait({self._opening})
            if self._opening.exception() is None:
                await self._opening.result().aclose()
        for screen in self._screens:
            await screen.aclose()

    def _lost(self) -> None:
        self.on_lost()

    def _late_taker(self) -> Callable[[bytes], None]:
        decoder = TerminalDecoder()

        def take(data: bytes) -> None:
            text = decoder.decode(data)[: _LATE_LIMIT + 1 - self._late_size]
            self._late_size += len(text)
            self._late.append(text)

        return take


def _drawn(text: str) -> LoopWork[str]:
    parts: list[str] = []
    for part in drawn(text):
        parts.append(part)
        yield part
    return "".join(parts)


class ScreenOnly:
    """A terminal in a sandbox that is nobody's controlling terminal but its holder's."""

    def __init__(self, holder: Process, path: str) -> None:
        self.path = path
        """Its name inside the sandbox."""
        self.on_data: Callable[[bytes], None] = lambda _data: None
        """Takes what is written to it; from the event loop."""
        self.on_lost: Callable[[], None] = lambda: None
        """Told when its holder has ended, which nobody here asked it to; from the event loop."""
        self._holder = holder
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def open(cls, sandbox: Sandbox, *, closed: bool = False) -> ScreenOnly:
        """Open one, `closed` to whoever would read from it. Raises `TerminalError`, `SandboxError`."""
        holder = await sandbox.exec(script.hold(closed=closed), cwd=sandbox.workspace_path, tty=True)
        try:
            async with asyncio.timeout(_READY_TIMEOUT):
                return cls(holder, await _name(holder))
        except TerminalError as exc:
            await holder.aclose()
            with contextlib.suppress(SandboxError):
                if await sandbox.crowded():  # not every program says so
                    raise TerminalError(exc.message, NO_ROOM) from exc
            raise
        except TimeoutError:
            await holder.aclose()
            reason = f"it was not open within {_READY_TIMEOUT:g} seconds"
            raise TerminalError("The workspace's terminal was not opened", reason) from None
        except BaseException:
            await holder.aclose()
            raise

    async def write(self, data: bytes) -> None:
        """Type `data`; raises `BrokenPipeError` when it is gone."""
        await self._holder.write(data)

    async def drain(self, seconds: float) -> None:
        """End it, and wait for what was written before to arrive."""
        await self._holder.kill()
        await asyncio.wait({self._reader}, timeout=seconds)

    async def aclose(self) -> None:
        """End it and release what it holds. Idempotent."""
        try:
            await self._holder.aclose()
        finally:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    async def _read(self) -> None:
        # Always: a background job must not stand still for want of a reader.
        while data := await self._holder.read():
            self.on_data(data)
            await asyncio.sleep(0)  # the others' turn: where there is much to read, a read does not wait
        # An engine that is away ends the stream, and may have it go on when it is back.
        if not (await self._holder.wait()).lost:  # with its sandbox, that is: the shell's own end tells that
            self.on_lost()


async def _name(holder: Process) -> str:
    said = b""
    while (found := _NAME.search(said)) is None:
        data = await holder.read()
        if not data or len(said) > _NOISE:
            reason = " ".join(said.decode("utf-8", "replace").split())[-200:] or "its process ended at once"
            reason = NO_ROOM if wants_processes(reason) else reason
            raise TerminalError("The workspace's terminal was not opened", reason)
        said += data
    return found[1].decode("ascii")
