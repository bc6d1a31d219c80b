"""Heartbeat of one connection: a silent client gets a ping, and its connection is dropped if it stays silent.

When the other end disappears (an unplugged cable, a closed laptop, a router that forgot the connection), no error
arrives. The sign of life is any byte that the operating system has received from the client: a pong, or a part of a
message. A client that reads a backlog is alive too: its pong comes after all that it has not read yet. An
acknowledgement of data that its machine only buffers is no sign of life.

No connection is dropped before a ping, however long the client was silent: a server that stood still (a suspended
machine, a stopped process) sends one first, because an idle client has no reason to send anything by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import cast

import structlog

log = structlog.get_logger(__name__)

_INFO = struct.Struct("=52xII60xQ")
"""Of Linux's `struct tcp_info`: ms since the last data, ms since the last acknowledgement, bytes acknowledged."""
_SLACK = 0.01
"""Seconds that the clock of the operating system may be behind the event loop's."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may be silent, in seconds."""

    ping: float = 30.0
    """After this the server sends a ping, and again after the same time."""
    drop: float = 90.0
    """After this the connection is dropped."""

    def remaining(self, silent: float, asked: float | None) -> float:
        """Return the seconds until the connection of a client that was silent for `silent` seconds is dropped.

        `asked`: the seconds since the first ping that it did not answer; None if there is none.
        """
        return max(self.drop - silent, self.drop - self.ping - (asked or 0.0))

    def next_check(self, silent: float, asked: float | None) -> float:
        """Return the seconds until the next ping or drop of such a client."""
        return min(self.ping - silent % self.ping, self.remaining(silent, asked)) + _SLACK


class Heartbeat:
    """Watches one connection while the context is open."""

    def __init__(
        self,
        transport: asyncio.Transport,
        patience: Patience,
        *,
        ping: Callable[[], Awaitable[None]],
        heard_ago: Callable[[], float | None] = lambda: None,
    ) -> None:
        """`ping` sends a ping; it may wait for room, and raise `ConnectionError`.

        `heard_ago` returns the seconds since the client sent something, or None where TCP knows that.
        """
        self._heard_ago = heard_ago
        self._transport = transport
        self._patience = patience
        self._ping = ping
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asked_at: float | None = None
        """When the first ping without an answer was sent; the client may have sent something since."""
        self._blocked = False
        self._acked = 0
        self._read_at = self._loop.time()

    def __enter__(self) -> None:
        self._timer = self._loop.call_later(self._patience.next_check(0.0, None), self._check)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _check(self) -> None:
        if self._transport.is_closing():
            return
        silent = self._silence()
        now = self._loop.time()
        if self._asked_at is not None and self._asked_at < now - silent:
            self._asked_at = None  # the client has sent something since
        if self._asked_at is not None and self._patience.remaining(silent, now - self._asked_at) <= 0:
            log.info("client_vanished", silent_seconds=round(silent, 1))
            self._transport.abort()
            return
        if silent >= self._patience.ping and self._asking is None:
            self._asking = self._loop.create_task(self._ask())
            if self._asked_at is None:
                self._asked_at = now
        asked = None if self._asked_at is None else now - self._asked_at
        self._timer = self._loop.call_later(self._patience.next_check(silent, asked), self._check)

    async def _ask(self) -> None:
        try:
            with contextlib.suppress(ConnectionError):  # the connection's reader gets it too
                await self._ping()
        finally:
            self._asking = None

    def _silence(self) -> float:
        """Return the seconds since the last sign of life."""
        if (ago := self._heard_ago()) is not None:
            return ago
        info = self._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        heard, acked_ago, acked = cast("tuple[int, int, int]", _INFO.unpack(info))
        now = self._loop.time()
        if self._blocked and acked > self._acked:
            self._read_at = now - acked_ago / 1000
        self._acked, self._blocked = acked, self._transport.get_write_buffer_size() > 0
        return min(heard / 1000, now - self._read_at)
