"""One program that an agent has started: its output, its terminal, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.messages import Refused
from kernelbridge.runtimes.agent.stream import Stream
from kernelbridge.runtimes.agent.terminal import set_size
from kernelbridge.runtimes.contract import NO_ROOM, ExitStatus, Moment

_STEPS = {
    "fork": NO_ROOM,
    "cwd": "its working directory cannot be entered",
    "program": "the program cannot be run",
    "terminal": "it could not be given its terminal",
}


class AgentProcess:
    """A program in a sandbox; see `contract.Process`. Made by `AgentClient.spawn` and `attach`.

    `fd` is the bridge's end of its pipe or terminal; owned from now on. The `post_` and `ask_` functions send
    what their names say to the agent.
    """

    def __init__(
        self,
        number: int,
        name: str,
        fd: int,
        *,
        tty: bool,
        ooms: int,
        post_signal: Callable[[int], None],
        post_kill: Callable[[], None],
        ask_moment: Callable[[], Awaitable[Moment]],
        ask_prune: Callable[[Moment | None], Awaitable[bool]],
        on_finished: Callable[[], object],
    ) -> None:
        self.number = number
        """Which the agent knows it by."""
        self.name = name
        self.pid = 0
        self.ooms = ooms
        """How often the sandbox had been out of memory when this process began."""
        self._loop = asyncio.get_running_loop()
        self._stream = Stream(fd)
        self._tty = tty
        self._post_signal, self._post_kill = post_signal, post_kill
        self._ask_moment, self._ask_prune = ask_moment, ask_prune
        self._on_finished = on_finished
        self.ending = False
        """Whether the agent has told of its end; what that was may not be known yet."""
        self._started: asyncio.Future[Refused | None] = self._loop.create_future()
        self._ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._killed: asyncio.Future[bool] = self._loop.create_future()
        self._kill_posted = False
        self._write_lock = asyncio.Lock()

    def __repr__(self) -> str:
        state = str(self._ended.result()) if self._ended.done() else f"runs as {self.pid}" if self.pid else "starts"
        return f"<AgentProcess {self.number} {self.name!r} {state}>"

    # -- the contract -----------------------------------------------------------

    @property
    def handle(self) -> str:
        """Give the number by which `AgentClient.attach` finds it."""
        return str(self.number)

    async def read(self) -> bytes:
        """Give the next output; `b""` once it has ended, even if something that it left behind holds the pipe."""
        stream = self._stream
        while not stream.closed:
            ended = self._ended.done()  # asked first: what it wrote before its end is then there to be read
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
            self._post_signal(signum)

    async def kill(self) -> None:
        """SIGKILL it and all that it ever started; raises `SandboxError` if something outlived that."""
        killed = self._killed
        self._kill_once()
        if not await asyncio.shield(killed):
            raise _outlived()

    async def moment(self) -> Moment:
        """Give the time in its sandbox; raises `SandboxError`."""
        return await self._ask_moment()

    async def prune(self, since: Moment | None = None) -> None:
        """SIGKILL what it has started, or has started since; raises `SandboxError` if something outlived that."""
        if not self._killed.done() and not await self._ask_prune(since):
            raise _outlived()

    async def wait(self) -> ExitStatus:
        """Return how it ended."""
        return await asyncio.shield(self._ended)

    async def aclose(self) -> None:
        """Kill it and close its descriptor."""
        try:
            await self.kill()
        finally:
            self._stream.close()

    def leave(self, error: SandboxError) -> None:
        """Close its descriptor and let it run; `error` is why it could not be started, if it has not."""
        self._stream.close()
        if not self._started.done():
            self._started.set_exception(error)

    # -- what the sandbox says --------------------------------------------------

    async def until_started(self, program: str) -> None:
        """Wait for the program to run; raises `SandboxError` where it does not. On any failure nothing stays open."""
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
        """Kill it, whenever it starts, and close its descriptor; for a caller that cannot wait."""
        self._kill_once()
        self._stream.close()

    def on_started(self, pid: int) -> bool:
        """Take the news that it runs; says whether that can be."""
        if self.pid:
            return False
        self.pid = pid
        with contextlib.suppress(asyncio.InvalidStateError):  # its waiter was cancelled
            self._started.set_result(None)
        return True

    def on_refused(self, refused: Refused) -> bool:
        """Take the news that it could not be started; says whether that can be."""
        if self.pid or self._ended.done():
            return False
        if not self._started.done():
            self._started.set_result(refused)
        self.on_ended(ExitStatus(code=127))
        if not self._kill_posted:  # else that will be answered
            self._killed.set_result(True)
        self._finish()
        return True

    def on_ended(self, status: ExitStatus) -> None:
        """Take how it ended; the first counts."""
        if self._ended.done():
            return
        self._ended.set_result(status)
        self._stream.wake()
        self._finish()

    def on_killed(self, *, everything: bool) -> bool:
        """Take the answer to a kill; says whether that was asked for."""
        if not self._kill_posted or self._killed.done():
            return False
        self._killed.set_result(everything)
        if everything:
            self._finish()
        else:
            self._killed, self._kill_posted = self._loop.create_future(), False  # it may be tried again
        return True

    def on_lost(self, error: SandboxError, status: ExitStatus) -> None:
        """Take the news that the whole sandbox is gone."""
        if not self._started.done():
            self._started.set_exception(error)
        self.on_ended(status)
        if not self._killed.done():
            self._killed.set_result(True)

    def _finish(self) -> None:
        if self._ended.done() and self._killed.done():
            self._on_finished()  # nothing more can come

    def _kill_once(self) -> None:
        if not self._kill_posted and not self._killed.done():
            self._kill_posted = True
            self._post_kill()


def _outlived() -> SandboxError:
    return SandboxError("Processes in the sandbox cannot be ended", "they start others faster; destroy the sandbox")
