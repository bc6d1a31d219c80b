"""TLS over a `Connection`.

Not asyncio's own: its transports rely on sockets that do not block, and a program can make its socket blocking again;
and what was already read of a ClientHello would be lost.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Protocol

CHUNK = 32 << 10
"""Bytes that are held in each direction."""
_MOST_UNASKED = 64 << 10
"""Bytes that the other side may cause to be sent without reading them."""


class Stream(Protocol):
    """What bytes come from and go to: a `Connection`, or TLS over one."""

    async def receive(self, most: int) -> bytes:
        """Return what came, up to `most` bytes; `b""` at the end. Raises `OSError`. Cancellation loses nothing."""
        ...

    async def send(self, data: bytes) -> None:
        """Send all of `data`, or a part of it when cancelled. Raises `OSError`."""
        ...

    async def end(self) -> None:
        """Say that nothing more will be sent. Idempotent."""
        ...


class TlsStream:
    """One end of a TLS connection. One reader and one writer at a time."""

    def __init__(
        self, below: Stream, context: ssl.SSLContext, *, server_name: str | None = None, received: bytes = b""
    ) -> None:
        """Send nothing yet.

        As a client of the server `server_name`; or as a server, if that is None. `received` is what was read already.
        """
        self._below = below
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(received)
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )

    async def handshake(self) -> None:
        """Begin TLS, and verify the server as a client. Raises `ssl.SSLError` if they do not agree, `OSError`."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self._flush()  # the alert says why
                raise
            else:
                return await self._flush()

    async def receive(self, most: int) -> bytes:
        """Return what came, up to `most` bytes; `b""` if the other side has ended TLS in order.

        Raises `OSError`, also if the connection ends without that: then something may be missing. Cancellation loses
        nothing.
        """
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                await self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    async def send(self, data: bytes) -> None:
        """Send all of `data`, or a part of it when cancelled. Raises `OSError`."""
        left = memoryview(data)
        while left:
            left = left[self._tls.write(left[:CHUNK]) :]
            await self._flush()

    async def end(self) -> None:
        """End TLS in order, and say that nothing more will be sent. Idempotent."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(ssl.SSLError):  # the other side has not ended it yet
                self._tls.unwrap()
            await self._flush()
        await self._below.end()

    async def _fill(self) -> None:
        # What TLS itself wants to send, after the handshake, waits for the next `send`.
        if self._outgoing.pending > _MOST_UNASKED:
            raise ConnectionAbortedError("the other side asks again and again")
        data = await self._below.receive(CHUNK)
        if not data:
            raise ConnectionResetError("the connection was cut off")
        self._incoming.write(data)

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._below.send(data)
