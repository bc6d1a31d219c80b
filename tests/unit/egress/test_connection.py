"""A connection that never blocks the event loop, whatever those do to it that hold it, too."""

import asyncio
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from kernelbridge.egress.connection import Connection

SO_TIMESTAMPING = 37
WHEN_IT_IS_SENT = 1 << 1 | 1 << 4
"""Of what is sent, the system's own time comes back in the error queue."""


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection; what somebody does to a duplicate holds for the first one, too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


async def test_it_waits_without_blocking_where_the_socket_blocks(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    connection = Connection(ours)
    os.set_blocking(os.dup(ours.fileno()), True)
    receiving = asyncio.create_task(connection.receive(100))
    sending = asyncio.create_task(connection.send(bytes(32 << 20)))
    await asyncio.sleep(0)
    theirs.settimeout(5)
    assert await asyncio.to_thread(theirs.recv, 1 << 20)
    theirs.sendall(b"in time")
    async with asyncio.timeout(5):
        assert await receiving == b"in time"
    sending.cancel()
    await asyncio.wait([sending])


async def test_a_close_waits_for_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = ends
    connection = Connection(ours)
    sending = asyncio.create_task(connection.send(bytes(32 << 20)))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait([sending])
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    async with asyncio.timeout(5):
        await asyncio.to_thread(connection.close)
    connection.close()


async def test_a_cancelled_receive_loses_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    connection = Connection(ours)
    receiving = asyncio.create_task(connection.receive(100))
    await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.wait([receiving])
    theirs.sendall(b"later")
    async with asyncio.timeout(5):
        assert await connection.receive(100) == b"later"


async def test_an_error_queue_that_somebody_else_has_asked_for_ends_it(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = ends
    receiving = asyncio.create_task(Connection(ours).receive(100))
    await asyncio.sleep(0)
    with ours.dup() as also_theirs:
        also_theirs.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, WHEN_IT_IS_SENT)
        also_theirs.send(b"x")
        async with asyncio.timeout(5):
            with pytest.raises(ConnectionAbortedError):
                await receiving
