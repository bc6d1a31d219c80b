"""One process in a local sandbox: its output, its terminal, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.base import NO_ROOM, ExitStatus
from kernelbridge.runtimes.local_agent import Refused
from kernelbridge.runtimes.terminals import no_terminals

_CHUNK = 1 << 16
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
"""linux/tty.h; python does not name them."""

_STEPS = {
    "fork": NO_ROOM,
    "cwd": "its working directory cannot be entered",
    "program": "the program cannot be run",
    "terminal": "it could not be given its terminal",
}


def open_terminal(ptmx: int, rows: int, cols: int, *, uid: int, gid: int) -> tuple[int, int]:
    """Open a terminal in the sandbox's own devpts; give (master, slave), which the caller closes.

    Raises `SandboxError` where there is none left.

    The master is opened here, so that only the bridge decides whether reading it blocks.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    try:
        master = os.open(f"/proc/self/fd/{ptmx}", flags | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        raise SandboxError("A terminal cannot be opened in the sandbox", no_terminals()) from exc
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        set_size(master, rows, cols)
        slave = int(fcntl.ioctl(master, _TIOCGPTPEER, flags))
        try:
            if os.geteuid() == 0:
                os.fchown(slave, uid, gid)  # so that its user can open it by name
        except BaseException:
            os.close(slave)
            raise
    except BaseException:
        os.close(master)
        raise
    return master, slave


def set_size(master: int, rows: int, cols: int) -> None:
    """Set a terminal's size in characters; its foreground processes get SIGWINCH."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


class LocalProcess:
    """A process in a local sandbox; see `base.Process`. Made by `LocalSandbox.exec`, which also feeds it."""

    def __init__(
        self,
        fd: int,
        *,
        tty: bool,
        ooms: int,
        post_signal: Callable[[int], None],
        post_kill: Callable[[], None],
    ) -> None:
        self.pid = 0
        self.handle = ""
        self.ooms = ooms
        """How often the sandbox had been out of memory when this process began."""
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._tty = tty
        self._post_signal, self._post_kill = post_signal, post_kill
        self._started: asyncio.Future[Refused | None] = self._loop.create_future()
        self._ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._killed: asyncio.Future[None] = self._loop.create_future()
        self._kill_posted = False
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._write_lock = asyncio.Lock()
        os.set_blocking(fd, False)

    # -- the contract -----------------------------------------------------------

    async def read(self) -> bytes:
        """Give the next output; `b""` once it has ended, even if something that it left behind holds the pipe."""
        while self._fd >= 0:
            ended = self._ended.done()  # asked first: what it wrote before its end is then there to be read
            data = self._read_now()
            if data:
                return data
            if ended:
                self._close()
            if ended or data is not None:
                return b""
            self._reading = self._loop.create_future()
            self._loop.add_reader(self._fd, _wake, self._reading)
            try:
                await self._reading
            finally:
                self._reading = None
                if self._fd >= 0:
                    self._loop.remove_reader(self._fd)
        return b""

    async def write(self, data: bytes) -> None:
        """Write all of `data` to the terminal."""
        if not self._tty:
            raise BrokenPipeError(errno.EPIPE, "the process was started without a terminal: its stdin is empty")
        async with self._write_lock:
            left = memoryview(data)
            while left:
                if self._fd < 0 or self._ended.done():
                    raise BrokenPipeError(errno.EPIPE, "the process has ended")
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:
                    await self._until_writable()
                except OSError as exc:
                    raise BrokenPipeError(errno.EPIPE, "the terminal is closed") from exc

    async def resize(self, rows: int, cols: int) -> None:
        """Set the size of the terminal."""
        if self._tty and self._fd >= 0 and not self._ended.done():
            set_size(self._fd, rows, cols)

    async def signal(self, signum: int) -> None:
        """Signal the process group."""
        if not self._ended.done():
            self._post_signal(signum)

    async def kill(self) -> None:
        """SIGKILL the session; returns when none of it is left."""
        self._kill_once()
        await asyncio.shield(self._killed)

    async def wait(self) -> ExitStatus:
        """Return how it ended."""
        return await asyncio.shield(self._ended)

    async def aclose(self) -> None:
        """Kill it and close its descriptor."""
        try:
            await self.kill()
        finally:
            self._close()

    def _read_now(self) -> bytes | None:
        """Give what there is: None for nothing yet, `b""` at the end."""
        try:
            return os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno == errno.EIO:  # how Linux says that nobody has the terminal open any more
                return b""
            raise

    # -- what the sandbox says --------------------------------------------------

    @property
    def finished(self) -> bool:
        """No more news can come."""
        return self._ended.done() and self._killed.done()

    async def until_started(self, program: str) -> None:
        """Wait for the program to run; raises `SandboxError` where it does not. On any failure nothing stays open."""
        try:
            refused = await self._started
        except BaseException:
            self.abandon()
            raise
        if refused is not None:
            self._close()
            reason = f"{_STEPS[refused.step]}: {os.strerror(refused.errno)}"
            raise SandboxError(f"{program!r} could not be started in the sandbox", reason)

    def abandon(self) -> None:
        """Kill it, whenever it starts, and close its descriptor; for a caller that cannot wait."""
        self._kill_once()
        self._close()

    def on_started(self, pid: int) -> bool:
        """Take the news that it runs; says whether that can be."""
        if self.pid:
            return False
        self.pid = pid
        _wake(self._started)
        return True

    def on_refused(self, refused: Refused) -> bool:
        """Take the news that it could not be started; says whether that can be."""
        if self.pid or self._ended.done():
            return False
        if not self._started.done():
            self._started.set_result(refused)
        self.on_ended(ExitStatus(code=127))
        if not self._kill_posted:
            _wake(self._killed)
        return True

    def on_ended(self, status: ExitStatus) -> bool:
        """Take the news of its end; says whether that can be."""
        if self._ended.done():
            return False
        self._ended.set_result(status)
        _wake(self._reading)
        _wake(self._writing)
        return True

    def on_killed(self) -> bool:
        """Take the news that nothing is left of its session; says whether that was asked for."""
        if not self._kill_posted or self._killed.done():
            return False
        _wake(self._killed)
        return True

    def on_lost(self, error: SandboxError, status: ExitStatus) -> None:
        """Take the news that the whole sandbox is gone."""
        if not self._started.done():
            self._started.set_exception(error)
        self.on_ended(status)
        _wake(self._killed)

    def _kill_once(self) -> None:
        if not self._kill_posted and not self._killed.done():
            self._kill_posted = True
            self._post_kill()

    def _close(self) -> None:
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        os.close(self._fd)
        self._fd = -1
        _wake(self._reading)
        _wake(self._writing)

    async def _until_writable(self) -> None:
        self._writing = self._loop.create_future()
        self._loop.add_writer(self._fd, _wake, self._writing)
        try:
            await self._writing
        finally:
            self._writing = None
            if self._fd >= 0:
                self._loop.remove_writer(self._fd)


def _wake(future: asyncio.Future[None] | asyncio.Future[Refused | None] | None) -> None:
    if future is not None:
        with contextlib.suppress(asyncio.InvalidStateError):  # already, or its waiter was cancelled
            future.set_result(None)
