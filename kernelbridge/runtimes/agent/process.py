"""A program that an agent has started: its output, its terminal, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from typing import Protocol

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.messages import Kill, Refused, Signal
from kernelbridge.runtimes.agent.stream import Stream
from kernelbridge.runtimes.agent.terminal import set_size
from kernelbridge.runtimes.contract import NO_ROOM, ExitStatus, Moment

_STEPS = {
    "fork": NO_ROOM,
    "cwd": "its working directory cannot be entered",
    "program": "the program cannot be run",
    "terminal": "it could not be given its terminal",
}


class Agent(Protocol):
    """What a process needs of `AgentClient`, which documents it."""

    def post(self, request: Signal | Kill) -> None: ...  # noqa: D102 - see above
    async def moment(self) -> Moment: ...  # noqa: D102
    async def prune(self, program: int, since: Moment | None) -> bool: ...  # noqa: D102
    def forget(self, program: int) -> None: ...  # noqa: D102


class AgentProcess:
    """A program in a sandbox; see `contract.Process`. Made by `AgentClient.spawn` and `attach`.

    `number` is its id in the agent; `fd` the bridge's end of its pipe or terminal, owned from now on; `oom_kills` the
    sandbox's number of out-of-memory kills when it was started.
    """

    def __init__(self, number: int, name: str, fd: int, *, tty: bool, oom_kills: int, agent: Agent) -> None:
        self.number, self.name = number, name
        self.id = str(number)
        self.pid = 0
        """0 until it has started."""
        self.oom_kills = oom_kills
        self._loop = asyncio.get_running_loop()
        self._stream = Stream(fd)
        self._tty = tty
        self._agent = agent
        self.ending = False
        """Whether the agent has reported its end; how it ended may not be known yet."""
        self._started: asyncio.Future[Refused | None] = self._loop.create_future()
        self._ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._killed: asyncio.Future[bool] = self._loop.create_future()
        self._kill_posted = False
        self._write_lock = asyncio.Lock()

    def __repr__(self) -> str:
        state = str(self._ended.result()) if self._ended.done() else f"runs as {self.pid}" if self.pid else "starts"
        return f"<AgentProcess {self.number} {self.name!r} {state}>"

    # -- the contract -----------------------------------------------------------

    async def read(self) -> bytes:
        """Return the next output; `b""` when it has ended, even if something that it left behind holds the pipe."""
        stream = self._stream
        await stream.turn()
        while not stream.closed:
            ended = self._ended.done()  # checked first: then all that it wrote before its end can be read below
            data = stream.read_now()
            if data:
                return data
            if ended:
                stream.close()
            if ended or data is not None:
                return b""
            await stream.until_readable()
        return b""

    async def write(self, data: bytes) -> None:
        """Write all of `data` to the terminal."""
        if not self._tty:
            raise BrokenPipeError(errno.EPIPE, "the process was started without a terminal: its stdin is empty")
        async with self._write_lock:
            left = memoryview(data)
            while left:
                if self._stream.closed or self._ended.done():
                    raise BrokenPipeError(errno.EPIPE, "the process has ended")
                left = left[await self._stream.write(left) :]

    def resize(self, rows: int, cols: int) -> None:
        """Set the size of the terminal."""
        if self._tty and not self._stream.closed and not self._ended.done():
            set_size(self._stream.fd, rows, cols)

    async def signal(self, signum: int) -> None:
        """Signal the process group."""
        if not self._ended.done():
            self._agent.post(Signal(self.number, signum))

    async def kill(self) -> None:
        """SIGKILL it and all that it ever started; raises `SandboxError` if something survives."""
        killed = self._killed
        self._kill_once()
        if not await asyncio.shield(killed):
            raise _survived()

    async def moment(self) -> Moment:
        """Return the time in its sandbox; raises `SandboxError`."""
        return await self._agent.moment()

    async def prune(self, since: Moment | None = None) -> None:
        """SIGKILL what it has started, or has started since; raises `SandboxError` if something survives."""
        if not self._killed.done() and not await self._agent.prune(self.number, since):
            raise _survived()

    async def wait(self) -> ExitStatus:
        """Wait for its end and return how it ended."""
        return await asyncio.shield(self._ended)

    async def aclose(self) -> None:
        """Kill it and close its descriptor."""
        try:
            await self.kill()
        finally:
            self._stream.close()

    def leave(self, error: SandboxError) -> None:
        """Close its descriptor and leave it running; `error` is raised to a caller that still waits for its start."""
        self._stream.close()
        if not self._started.done():
            self._started.set_exception(error)

    # -- for its client ---------------------------------------------------------

    async def until_started(self, program: str) -> None:
        """Wait until it runs; raises `SandboxError` if it cannot be started. After a failure nothing stays open."""
        try:
            refused = await self._started
        except BaseException:
            self.abandon()
            raise
        if refused is not None:
            self._stream.close()
            reason = f"{_STEPS[refused.step]}: {os.strerror(refused.errno)}"
            raise SandboxError(f"{program!r} could not be started in the sandbox", reason)

    def abandon(self) -> None:
        """Kill it as soon as it runs, and close its descriptor; waits for nothing."""
        self._kill_once()
        self._stream.close()

    def on_started(self, pid: int) -> bool:
        """Handle `started`; return whether that was expected."""
        if self.pid:
            return False
        self.pid = pid
        with contextlib.suppress(asyncio.InvalidStateError):  # its waiter was cancelled
            self._started.set_result(None)
        return True

    def on_refused(self, refused: Refused) -> bool:
        """Handle `refused`: it could not be started. Return whether that was expected."""
        if self.pid or self._ended.done():
            return False
        if not self._started.done():
            self._started.set_result(refused)
        self.on_ended(ExitStatus(code=127))
        if not self._kill_posted:  # otherwise the agent answers that
            self._killed.set_result(True)
        self._finish()
        return True

    def on_ended(self, status: ExitStatus) -> None:
        """Handle its end; the first call counts."""
        if self._ended.done():
            return
        self._ended.set_result(status)
        self._stream.wake()
        self._finish()

    def on_killed(self, *, everything: bool) -> bool:
        """Handle `killed`; return whether that was expected. `everything` says whether nothing is left."""
        if not self._kill_posted or self._killed.done():
            return False
        self._killed.set_result(everything)
        if everything:
            self._finish()
        else:
            self._killed, self._kill_posted = self._loop.create_future(), False  # it may be tried again
        return True

    def on_lost(self, error: SandboxError, status: ExitStatus) -> None:
        """Handle the end of the whole sandbox."""
        if not self._started.done():
            self._started.set_exception(error)
        self.on_ended(status)
        if not self._killed.done():
            self._killed.set_result(True)

    def _finish(self) -> None:
        if self._ended.done() and self._killed.done():
            self._agent.forget(self.number)

    def _kill_once(self) -> None:
        if not self._kill_posted and not self._killed.done():
            self._kill_posted = True
            self._agent.post(Kill(self.number))


def _survived() -> SandboxError:
    return SandboxError("Processes in the sandbox cannot be ended", "they start new ones faster; close the session")
