"""The bridge's end of a pipe or a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat

from kernelbridge.runtimes.contract import PROXY_PORT

_CHUNK = 1 << 16


def is_pipe_or_terminal(fd: int) -> bool:
    """Whether a descriptor from a sandbox is what an agent passes; others can block a read or a close, or never end."""
    return (stat.S_ISFIFO(os.fstat(fd).st_mode) and not _is_only_a_path(fd)) or os.isatty(fd)


def is_proxy_connection(fd: int) -> bool:
    """Whether a descriptor from a sandbox is a connection that was accepted at the proxy's port of its loopback."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode) or _is_only_a_path(fd):
        return False
    connection = socket.socket(fileno=fd)
    try:
        kind = (connection.family, connection.type, connection.proto)
        if kind != (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP):
            return False
        return connection.getsockname() == ("127.0.0.1", PROXY_PORT) and not connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        )
    finally:
        connection.detach()  # without a copy, for which no descriptor may be free


def _is_only_a_path(fd: int) -> bool:
    """Whether a descriptor was opened with O_PATH: it has the type of a pipe or socket, and can be used as neither."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH)


class Stream:
    """Reads and writes a descriptor without blocking; owns it. One reader and one writer at a time."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        """-1 after `close`."""
        self._loop = asyncio.get_running_loop()
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._found = False
        """Whether the latest `read_now` returned data."""
        os.set_blocking(fd, False)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.fd < 0

    async def turn(self) -> None:
        """Let other tasks run before the next `read_now`, if the latest found data. Safe to cancel.

        Where there is always something to read, nothing else would make a reader wait.
        """
        if self._found:
            self._found = False
            await asyncio.sleep(0)

    def read_now(self) -> bytes | None:
        """Return what can be read now: None for nothing yet, `b""` at the end."""
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno == errno.EIO:  # of a terminal: nobody has its other end open any more
                return b""
            raise
        self._found = bool(data)
        return data

    async def until_readable(self) -> None:
        """Wait until something may be readable, or it is closed, or `wake` is called. Safe to cancel."""
        self._reading = self._loop.create_future()
        self._loop.add_reader(self.fd, wake, self._reading)
        try:
            await self._reading
        finally:
            self._reading = None
            if self.fd >= 0:
                self._loop.remove_reader(self.fd)

    async def write(self, data: memoryview) -> int:
        """Write as much as there is room for now, and return how many bytes; 0 after a wait for room.

        Raises `BrokenPipeError`.
        """
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            await self._until_writable()
            return 0
        except OSError as exc:
            raise BrokenPipeError(errno.EPIPE, "the terminal is closed") from exc

    def wake(self) -> None:
        """Wake up the reader and the writer, if they wait."""
        wake(self._reading)
        wake(self._writing)

    def close(self) -> None:
        """Close it. Idempotent."""
        if self.fd < 0:
            return
        self._loop.remove_reader(self.fd)
        self._loop.remove_writer(self.fd)
        os.close(self.fd)
        self.fd = -1
        self.wake()

    async def _until_writable(self) -> None:
        self._writing = self._loop.create_future()
        self._loop.add_writer(self.fd, wake, self._writing)
        try:
            await self._writing
        finally:
            self._writing = None
            if self.fd >= 0:
                self._loop.remove_writer(self.fd)


def wake(future: asyncio.Future[None] | None) -> None:
    """Set a future's result, unless it is done or cancelled."""
    if future is not None:
        with contextlib.suppress(asyncio.InvalidStateError):
            future.set_result(None)
