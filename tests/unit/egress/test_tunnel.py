"""Copying both ways: what ends when one side has said everything."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from kernelbridge.egress.allowance import Allowance
from kernelbridge.egress.connection import Connection
from kernelbridge.egress.meter import Meter, Moved
from kernelbridge.egress.tunnel import Tunnel
from tests.unit.egress.hosts_of_the_test import PATIENCE, read_all


class NotedConnection(Connection):
    """A connection that notes whether its end was said."""

    ended = False

    async def end(self) -> None:
        self.ended = True
        await super().end()


@dataclass
class Pair:
    """The two connections of a tunnel, and what is at their other ends."""

    program: socket.socket
    inside: NotedConnection
    outside: NotedConnection
    host: socket.socket


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    (program, inside), (outside, host) = socket.socketpair(), socket.socketpair()
    with program, host, closing(NotedConnection(inside)) as inner, closing(NotedConnection(outside)) as outer:
        program.settimeout(0)
        host.settimeout(0)
        yield Pair(program, inner, outer, host)


async def test_when_one_side_has_ended_the_other_has_less_time(pair: Pair) -> None:
    tunnel = Tunnel(pair.inside, pair.outside, Meter(Allowance(None, None), Moved(), idle=3600, half_closed=0.05))
    copying = asyncio.ensure_future(tunnel.run(b"hello"))
    pair.host.shutdown(socket.SHUT_WR)
    await asyncio.wait({copying}, timeout=PATIENCE)
    assert copying.done()
    assert isinstance(copying.exception(), TimeoutError)


async def test_after_a_request_the_host_is_not_told_that_nothing_more_comes(pair: Pair) -> None:
    """Some servers take the end of a connection for the wish to stop."""
    tunnel = Tunnel(pair.inside, pair.outside, Meter(Allowance(None, None), Moved()))
    copying = asyncio.ensure_future(tunnel.run(b"head", body=4))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        await loop.sock_sendall(pair.program, b"body and more")
        data = b""
        while len(data) < len(b"headbody"):
            data += await loop.sock_recv(pair.host, 100)
        await loop.sock_sendall(pair.host, b"answer")
        pair.host.shutdown(socket.SHUT_WR)
        await copying
        assert await read_all(pair.program) == b"answer"
    assert data == b"headbody"
    assert (pair.inside.ended, pair.outside.ended) == (True, False)
