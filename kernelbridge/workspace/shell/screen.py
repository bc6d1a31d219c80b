"""A terminal to write on: a process that does nothing, and whose output is what others write there."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable

from kernelbridge.errors import SandboxError, TerminalError
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.runtimes.base import NO_ROOM, Process, Sandbox
from kernelbridge.workspace.shell import script

_READY_TIMEOUT = 10.0
"""Seconds to say its name."""
_NAME = re.compile(rb"(/dev/pts/[0-9]+)\r?\n")
_NOISE = 1 << 16


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
