"""A connected socket that never blocks the event loop, although a sandbox may hold it, too."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

_NO_LINGER = struct.pack("ii", 0, 0)


class Connection:
    """One TCP connection; owns the socket. One reader and one writer at a time.

    Whoever else holds the socket can make it blocking again; so no call here relies on that.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()

    async def receive(self, most: int) -> bytes:
        """Return what came, up to `most` bytes; `b""` when the other side has said everything.

        Raises `OSError`. Cancellation loses nothing.
        """
        while True:
            try:
                return self._socket.recv(most, socket.MSG_DONTWAIT)
            except BlockingIOError:
                await self._until(self._loop.add_reader, self._loop.remove_reader)

    async def send(self, data: bytes) -> None:
        """Send all of `data`, or a part of it when cancelled. Raises `OSError`."""
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                await self._until(self._loop.add_writer, self._loop.remove_writer)

    async def end(self) -> None:
        """Say that nothing more will be sent. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close it, without waiting for anything. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._socket.close()

    async def _until(self, add: Callable[[int, Callable[[], None]], object], remove: Callable[[int], object]) -> None:
        """Wait until the socket is readable, or writable.

        Raises `ConnectionAbortedError` if it has an error queue, which only those have asked for who hold it, too: as
        long as something is in there, the socket would seem ready.
        """
        with contextlib.suppress(BlockingIOError):
            self._socket.recvmsg(1, 0, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            raise ConnectionAbortedError
        ready = asyncio.Event()
        fd = self._socket.fileno()
        add(fd, ready.set)
        try:
            await ready.wait()
        finally:
            remove(fd)
