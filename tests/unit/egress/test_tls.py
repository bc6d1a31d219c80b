"""The end of a TLS connection: in order, or cut off, which may hide that something is missing."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from kernelbridge.egress.connection import Connection
from kernelbridge.egress.tls import TlsStream
from tests.unit.egress.hosts_of_the_test import certified

PATIENCE = 20.0


@pytest.fixture
async def ends() -> AsyncIterator[tuple[TlsStream, TlsStream, Connection]]:
    """Both ends of a connection, and what the first one sends over."""
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    below, far = (Connection(end) for end in socket.socketpair())
    client = TlsStream(below, trusting, server_name="a.example")
    server = TlsStream(far, certified(authority, "a.example"))
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(client.handshake(), server.handshake())
        await client.send(b"all of it")
    yield client, server, below
    below.close()
    far.close()


@pytest.mark.parametrize("has_ended", [False, True])
async def test_an_end_in_order_is_the_end(ends: tuple[TlsStream, TlsStream, Connection], *, has_ended: bool) -> None:
    client, server, _ = ends
    async with asyncio.timeout(PATIENCE):
        assert await server.receive(100) == b"all of it"
        if has_ended:
            await server.end()
        await client.end()
        assert [await server.receive(100) for _ in range(2)] == [b"", b""]


async def test_an_end_without_that_is_an_error(ends: tuple[TlsStream, TlsStream, Connection]) -> None:
    _, server, below = ends
    below.close()
    async with asyncio.timeout(PATIENCE):
        assert await server.receive(100) == b"all of it"
        with pytest.raises(ConnectionResetError):
            await server.receive(100)
