"""The bridge's end of a pipe or a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os

_CHUNK = 1 << 16


class Stream:
    """A descriptor, owned from now on, that is read and written without blocking. One reader and one writer."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        """-1 once it is closed."""
        self._loop = asyncio.get_running_loop()
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        os.set_blocking(fd, False)

    @property
    def closed(self) -> bool:
        """Whether it has been closed here."""
        return self.fd < 0

    def read_now(self) -> bytes | None:
        """Give what there is: None for nothing yet, `b""` at the end."""
        try:
            return os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno == errno.EIO:  # how Linux says that nobody has the terminal open any more
                return b""
            raise

    async def until_readable(self) -> None:
        """Wait until there may be something to read, or it is closed, or `wake` is called."""
        self._reading = self._loop.create_future()
        self._loop.add_reader(self.fd, wake, self._reading)
        try:
            await self._reading
        finally:
            self._reading = None
            if self.fd >= 0:
                self._loop.remove_reader(self.fd)

    async def write(self, data: memoryview) -> int:
        """Write what there is room for now, and give how much; waits where there is none. Raises `BrokenPipeError`."""
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            await self._until_writable()
            return 0
        except OSError as exc:
            raise BrokenPipeError(errno.EPIPE, "the terminal is closed") from exc

    def wake(self) -> None:
        """Have whoever waits look again."""
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
    """Set a future, unless it is or its waiter was cancelled."""
    if future is not None:
        with contextlib.suppress(asyncio.InvalidStateError):
            future.set_result(None)
