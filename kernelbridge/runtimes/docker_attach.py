"""The byte stream of an exec: taken out of the SDK's response, framed or raw, read by asyncio.

The engine answers `POST /exec/{id}/start` by turning the HTTP connection into a stream. With a terminal it is
raw; without one every piece has a header of 8 bytes: its stream, three zeros, its length (big-endian).
https://docs.docker.com/reference/api/engine/ ("Attach to a container", "Stream format")
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from docker.api import APIClient

from kernelbridge.errors import RuntimeUnavailable

HIGH_WATER = 256 << 10
"""Bytes that wait for a reader before the engine is no longer read from; the process then blocks in its write."""

_HEADER = struct.Struct(">BxxxL")


@dataclass(frozen=True, slots=True)
class Attached:
    """A connection that has become a stream, with what had already been read from it."""

    sock: socket.socket
    prefetched: bytes

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def take_over(stream: Any) -> Attached:
    """Take the connection out of what the SDK returns for one. The only place that reaches below the SDK for it."""
    response = getattr(stream, "_response", None)
    inner = getattr(stream, "_sock", None)
    if response is None or type(inner) is not socket.socket:
        raise RuntimeUnavailable(
            "This Docker engine cannot be used", "programs are started over a local socket: unset DOCKER_HOST"
        )
    # The reader of the HTTP header may hold the first bytes of the stream. Non-blocking, it gives what there is.
    inner.settimeout(0)
    prefetched = bytes(response.raw._fp.fp.peek())  # noqa: SLF001 - the SDK offers no way to them
    sock = socket.socket(fileno=os.dup(inner.fileno()))
    sock.settimeout(0)  # a duplicate does not inherit what Python knows of the first
    response.close()
    return Attached(sock, prefetched)


def start_exec(api: APIClient, exec_id: str, *, tty: bool) -> Attached:
    """Start an exec and take over its connection. Blocks."""
    return take_over(api.exec_start(exec_id, tty=tty, socket=True))


class EventStream:
    """The engine's endless answer to `GET /events`. Iterated by one thread, hung up by any."""

    def __init__(self, api: APIClient, filters: dict[str, Any]) -> None:
        """Ask for it; raises what the SDK does, also if the engine refuses, or a proxy before it."""
        stream: Any = api.events(filters=filters, decode=True)
        self._events: Iterator[Mapping[str, Any]] = iter(stream)
        self._response = stream._response  # noqa: SLF001 - the SDK offers no way to it
        try:
            self._response.raise_for_status()  # which the SDK does with the first event only
        except BaseException:
            self._response.close()
            raise
        self._connection: socket.socket = self._response.raw._fp.fp.raw._sock  # noqa: SLF001 - as above
        # The time-out of a call would end it: there may be nothing to tell for hours.
        self._connection.settimeout(None)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self._events

    def hang_up(self) -> None:
        """End the iteration, which may be in another thread."""
        with contextlib.suppress(OSError):  # the engine hung up first
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the connection, after the iteration."""
        self._response.close()


class FrameDecoder:
    """Takes the headers out of a framed stream, whatever way it is cut."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Give the content of `data`, of all streams in order."""
        view = memoryview(data)
        content: list[memoryview] = []
        while view:
            if self._left:
                piece = view[: self._left]
                content.append(piece)
                self._left -= len(piece)
            else:
                piece = view[: _HEADER.size - len(self._header)]
                self._header += piece
                if len(self._header) == _HEADER.size:
                    (_, self._left) = _HEADER.unpack(self._header)
                    self._header.clear()
            view = view[len(piece) :]
        return b"".join(content)


class AttachStream(asyncio.Protocol):
    """Reads and writes an attached exec, with back-pressure both ways."""

    def __init__(self, *, framed: bool, on_end: Callable[[], None] = lambda: None) -> None:
        self._decoder = FrameDecoder() if framed else None
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._size = 0
        self._reading_paused = False
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.get_running_loop().create_future()

    async def connect(self, attached: Attached) -> None:
        """Hand the connection to the event loop. `on_end` is called once, when nothing more can come."""
        if attached.prefetched:
            self.data_received(attached.prefetched)
        loop = asyncio.get_running_loop()
        try:
            if attached.sock.family == socket.AF_UNIX:
                await loop.create_unix_connection(lambda: self, sock=attached.sock)
            else:
                await loop.create_connection(lambda: self, sock=attached.sock)
        except BaseException:
            attached.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether nothing more can come or go; what has come may still be read."""
        return self._ended

    async def read(self) -> bytes:
        """Give all that has come, waiting for something to come; `b""` at the end."""
        if self._reader is not None:
            raise RuntimeError("read() was called while another read() waits")
        while not self._waiting:
            if self._ended:
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        if self._reading_paused and self._transport is not None and not self._ended:
            self._reading_paused = False
            self._transport.resume_reading()
        return data

    def unread(self, data: bytes) -> None:
        """Put back what was read too far."""
        if data:
            self._waiting.insert(0, data)
            self._size += len(data)

    async def write(self, data: bytes) -> None:
        """Send all of `data`; raises `BrokenPipeError` if it cannot arrive."""
        if self._ended or self._transport is None or self._transport.is_closing():
            raise BrokenPipeError("the process has ended")
        self._transport.write(data)
        await self._writable.wait()
        if self._ended:
            raise BrokenPipeError("the process has ended")

    async def aclose(self) -> None:
        """Hang up and wait until the descriptor is released. Idempotent."""
        self.abort()
        if self._transport is not None:
            await asyncio.shield(self._closed)

    def abort(self) -> None:
        """Hang up; a reader gets what has come and then the end."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio)."""
        self._transport = cast("asyncio.Transport", transport)  # a stream socket's goes both ways

    def data_received(self, data: bytes) -> None:
        """Keep what has come (asyncio)."""
        content = self._decoder.feed(data) if self._decoder else data
        if not content:
            return
        self._waiting.append(content)
        self._size += len(content)
        if self._size > HIGH_WATER and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """Learn that the process's output has ended; the transport then closes itself (asyncio)."""
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it was lost makes no difference
        """Learn that the connection has ended (asyncio)."""
        self._end()
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """Learn that the engine takes no more for now (asyncio)."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Learn that the engine takes more (asyncio)."""
        self._writable.set()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._writable.set()
            self._wake()
            self._on_end()
