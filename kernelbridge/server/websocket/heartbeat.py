"""Whether a client is still there: it is asked when nothing is heard of it, and dropped when it stays silent.

A connection whose other end vanished (a cable, a lid, a router that forgot it) says nothing of that. The sign of
life is what the kernel has received of it, a pong or anything else, whole message or not. Who reads a backlog lives
too: its pong is behind all that it has not read yet. That its machine confirms what fits into its buffers is no sign.

Nobody is dropped who was not asked, however long it has been silent: a server that stood still (a suspended machine, a
stopped process) asks first, as clients that send nothing of themselves had no reason to.
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
"""Of Linux's `struct tcp_info`: ms since the last data and since the last confirmation, bytes confirmed in all."""
_SLACK = 0.01
"""Seconds that the kernel's clock may be behind ours."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may be silent, in seconds."""

    ping: float = 30.0
    """After which it is asked for a sign of life; again after as long."""
    drop: float = 90.0
    """After which it is gone."""

    def left(self, silent: float, asked: float | None) -> float:
        """Give the seconds until a client is gone that was silent for `silent` of them.

        It was first asked `asked` seconds ago, or not since it was last heard of.
        """
        return max(self.drop - silent, self.drop - self.ping - (asked or 0.0))

    def next_look(self, silent: float, asked: float | None) -> float:
        """Give the seconds until something is to be done about such a client."""
        return min(self.ping - silent % self.ping, self.left(silent, asked)) + _SLACK


class Heartbeat:
    """Watches one connection while it is entered."""

    def __init__(
        self, transport: asyncio.Transport, patience: Patience, *, ping: Callable[[], Awaitable[None]]
    ) -> None:
        """`ping` asks the client for a sign of life; it may wait, and raise `ConnectionError`."""
        self._transport = transport
        self._patience = patience
        self._ping = ping
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asked_at: float | None = None
        """When it was first asked of those times that it has not answered; it may have been heard of since."""
        self._blocked = False
        self._confirmed = 0
        self._read_at = self._loop.time()

    def __enter__(self) -> None:
        self._timer = self._loop.call_later(self._patience.next_look(0.0, None), self._look)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        silent = self._silence()
        now = self._loop.time()
        if self._asked_at is not None and self._asked_at < now - silent:
            self._asked_at = None  # it has been heard of since
        if self._asked_at is not None and self._patience.left(silent, now - self._asked_at) <= 0:
            log.info("client_vanished", silent_seconds=round(silent, 1))
            self._transport.abort()
            return
        if silent >= self._patience.ping and self._asking is None:
            self._asking = self._loop.create_task(self._ask())
            if self._asked_at is None:
                self._asked_at = now
        asked = None if self._asked_at is None else now - self._asked_at
        self._timer = self._loop.call_later(self._patience.next_look(silent, asked), self._look)

    async def _ask(self) -> None:
        try:
            with contextlib.suppress(ConnectionError):  # whoever reads from it hears of that, too
                await self._ping()
        finally:
            self._asking = None

    def _silence(self) -> float:
        """Give the seconds since the last sign of life."""
        info = self._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        heard, confirmed_ago, confirmed = cast("tuple[int, int, int]", _INFO.unpack(info))
        now = self._loop.time()
        if self._blocked and confirmed > self._confirmed:
            self._read_at = now - confirmed_ago / 1000
        self._confirmed, self._blocked = confirmed, self._transport.get_write_buffer_size() > 0
        return min(heard / 1000, now - self._read_at)
