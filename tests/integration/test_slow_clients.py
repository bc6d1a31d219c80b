"""A client that does not read slows nobody else, costs bounded memory, and does not hold up the stop."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from kernelbridge.server.websocket import outbox
from tests.integration.conftest import RunningServer, StartServer

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""

UPGRADE = (
    "GET /ws?user_id=deaf HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@contextmanager
def deaf_client(server: RunningServer) -> Iterator[socket.socket]:
    """Connect with the smallest receive buffer, and never read after the upgrade."""
    address = urlsplit(server.url)
    assert address.hostname is not None
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((address.hostname, address.port or 80))
        client.sendall(UPGRADE.format(host=address.netloc).encode())
        yield client


def frame(**message: object) -> bytes:
    """Mask one short text frame, with a mask of zeros."""
    data = json.dumps(message).encode()
    assert 126 <= len(data) + 126 < 1 << 16
    return b"\x81\xfe" + len(data).to_bytes(2, "big") + bytes(4) + data


async def test_a_deaf_client_is_cut_off_and_the_others_are_served(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LIMIT", 3 << 20)
    loop = asyncio.get_running_loop()
    with deaf_client(server) as deaf:
        big = frame(type="execute_code", sessionId="s", code="print('x' * 2_000_000)")
        await loop.run_in_executor(None, deaf.sendall, big * 4)
        async with server.connect("deaf") as other:
            # Behind the four cells of the same session: they ran, although nobody read their results.
            assert (await other.run("print('served')"))["output"] == "served\n"
        deaf.settimeout(30)

        def drained() -> bytes:
            last = b""
            while data := deaf.recv(1 << 16):
                last = (last + data)[-200:]
            return last

        # It reads at last: what was sent before, then the close frame that says why.
        assert b"answers were not read in time" in await loop.run_in_executor(None, drained)


async def test_what_a_deaf_client_was_cut_off_from_is_there_when_it_comes_back(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot notice, for it reads nothing; so to the server it is still there when its answers come."""
    lasting = await start_server(linger="60s", journal_size="100k", max_output="64m")
    with deaf_client(lasting) as deaf:
        big = b"".join(
            frame(type="execute_code", sessionId="s", code="print('x' * 4_000_000)", requestId=f"{n}") for n in range(3)
        )
        async with lasting.connect("deaf") as other:
            with monkeypatch.context() as lowered:
                lowered.setattr(outbox, "LIMIT", 3 << 20)
                await asyncio.get_running_loop().run_in_executor(None, deaf.sendall, big)
                assert (await other.run("print('served')"))["output"] == "served\n"
            await other.send(type="resume", sessionId="s")
            await other.send(type="execute_code", sessionId="s", code="pass", requestId="end")
            await other.answer_to("end")
            assert {"0", "1", "2"} <= {told.get("requestId") for told in other.frames}


@pytest.fixture
def afterwards() -> Iterator[ExitStack]:
    """What is left to do when the server has stopped: a fixture that a test names before the server."""
    with ExitStack() as stack:
        yield stack


async def test_a_deaf_client_does_not_hold_up_the_stop(afterwards: ExitStack, server: RunningServer) -> None:
    """The fixture stops the server while the client is still connected, and deaf."""
    deaf = afterwards.enter_context(deaf_client(server))
    deaf.sendall(frame(type="execute_code", sessionId="s", code="print('x' * 20_000_000)"))
    async with server.connect("deaf") as other:
        assert (await other.run("print('served')"))["output"] == "served\n"
