"""Unfinished messages and unread answers cost bounded memory, and the client that holds most is told why it ends."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from kernelbridge.server.websocket import socket
from tests.unit.server.conftest import PATIENCE, RunningServer, StartServer, Wire, masked, text

MIB = 1 << 20


async def unfinished(wire: Wire, size: int) -> None:
    """Leave a message of `size` bytes and one more unfinished."""
    wire.write(masked(1, bytes(size), length=size + 1))
    await wire.writer.drain()


async def works(server: RunningServer, user: str = "other") -> None:
    """Another client is served, and a message of its own as large as any."""
    async with server.connect(user) as client:
        pong = await client.ask(type="ping", requestId="r", more="x" * MIB)
        assert (pong["type"], pong["requestId"]) == ("pong", "r")


@pytest.fixture
async def server(start_server: StartServer) -> RunningServer:
    return await start_server(max_message="2m", max_buffered="8m")


async def test_of_many_unfinished_messages_the_largest_of_the_largest_user_is_dropped_and_told(
    server: RunningServer,
) -> None:
    async with AsyncExitStack() as stack:
        modest = await stack.enter_async_context(server.upgraded("modest"))
        await unfinished(modest, MIB)
        greedy = [await stack.enter_async_context(server.upgraded("greedy")) for _ in range(20)]
        for wire in greedy:
            await unfinished(wire, 3 * MIB // 2)
        told = [asyncio.create_task(wire.ending()) for wire in greedy]
        done: set[asyncio.Task[tuple[list[dict[str, object]], int, str]]] = set()
        while len(done) < 16:
            done, _ = await asyncio.wait(told, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            done = {task for task in told if task.done()}
        for task in done:
            said, code, reason = task.result()
            assert (code, reason) == (1013, "too much is buffered")
            assert [(frame["type"], frame["code"], frame["retryable"]) for frame in said] == [
                ("error", "too_much_buffered", True)
            ]
        await works(server)
        # Clients that hold little can finish, and so can the last one that held much.
        (left,) = [wire for wire, task in zip(greedy, told, strict=True) if not task.done()][:1]
        for wire in (modest, left):
            wire.write(b"\0")
        assert json.loads((await modest.frame())[1])["code"] == "invalid_json"
        for task in told:
            task.cancel()
        await asyncio.wait(told)


async def test_who_reads_nothing_is_cut_off_before_the_budget_is_used_up(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each of the four may have 5.5 MiB waiting: of 16 in all, two are ended, both are told before they go.
    server = await start_server(max_message="2m", max_buffered="16m")
    cut_off = asyncio.Event()
    end = socket.Socket.end

    def seen_end(self: socket.Socket) -> None:
        cut_off.set()
        end(self)

    monkeypatch.setattr(socket.Socket, "end", seen_end)
    async with AsyncExitStack() as stack:
        deaf = [await stack.enter_async_context(server.upgraded("deaf", buffer=1024)) for _ in range(4)]
        for wire in deaf:
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a socket's
        async with server.connect("deaf") as client:
            await client.ask(type="save_file", sessionId="s", filename="f", content="x" * (3 * MIB // 2))
        for wire in deaf:
            for number in range(10):
                wire.write(text(type="read_file", sessionId="s", filename="f", requestId=f"{number}"))
        await works(server)
        async with asyncio.timeout(PATIENCE):
            await cut_off.wait()
        for wire in deaf:
            wire.writer.transport.resume_reading()  # type: ignore[attr-defined]  # likewise
        ends = await asyncio.gather(*(asyncio.wait_for(read_all(wire), PATIENCE) for wire in deaf))
        assert any("too_much_buffered" in end for end in ends)


async def read_all(wire: Wire) -> str:
    """Return the codes of what comes, until the connection ends or all is answered."""
    codes: list[str] = []
    try:
        while True:
            opcode, payload = await wire.frame()
            if opcode != 1:
                return " ".join(codes)
            frame = json.loads(payload)
            codes.append(str(frame.get("code", frame.get("requestId"))))
            if len(codes) == 10:  # in any order: files are read beside each other
                return " ".join(codes)
    except (asyncio.IncompleteReadError, ConnectionError):
        return " ".join(codes)


async def test_a_message_that_is_not_finished_in_time_is_dropped_and_told(start_server: StartServer) -> None:
    server = await start_server(message_timeout="300ms")
    for begun in (b"\x81", masked(1, b"{")[:-1], masked(1, b"{", length=50), masked(1, b"{", fin=False)):
        async with server.upgraded() as wire:
            wire.write(text(type="ping"), begun)
            assert b'"pong"' in (await wire.frame())[1]
            said, code, reason = await wire.ending()
            assert (code, reason) == (1008, "the message was not finished in time")
            assert [(frame["type"], frame["code"]) for frame in said] == [("error", "message_timeout")]


async def test_drops_of_a_message_do_not_prolong_its_time(start_server: StartServer) -> None:
    server = await start_server(message_timeout="500ms")
    async with server.upgraded() as wire:
        ending = asyncio.create_task(wire.ending())
        wire.write(masked(1, b"{", length=1000))
        while not ending.done():
            wire.write(b" ")
            await asyncio.wait({ending}, timeout=0.05)
        assert ending.result()[1] == 1008


async def test_pings_do_not_prolong_the_time_of_a_message(start_server: StartServer) -> None:
    """They may come between two fragments, and so many of them that the connection is not read for a moment."""
    server = await start_server(message_timeout="500ms")
    async with server.upgraded() as wire:
        ending = asyncio.create_task(close_code(wire))
        wire.write(masked(1, b"{", fin=False))
        async with asyncio.timeout(PATIENCE):
            while not ending.done():
                wire.write(masked(9) * 2000)
                await asyncio.wait({ending}, timeout=0.2)
        assert ending.result() == 1008


async def close_code(wire: Wire) -> int:
    """Return the code with which the server closes, whatever it says before."""
    while (frame := await wire.frame())[0] != 8:
        pass
    return int.from_bytes(frame[1][:2], "big")


async def test_an_idle_client_and_one_that_goes_on_are_never_late(start_server: StartServer) -> None:
    server = await start_server(message_timeout="200ms")
    async with server.upgraded() as idle, server.upgraded() as wire:
        ping = text(type="ping")
        loop = asyncio.get_running_loop()
        began = loop.time()
        wire.write(ping[:5])
        while loop.time() < began + 1:  # each message is finished soon, and the next begins in the same piece
            wire.write(ping[5:], ping[:5])
            assert b'"pong"' in (await wire.frame())[1]
        idle.write(ping)
        assert b'"pong"' in (await idle.frame())[1]


async def test_the_time_in_which_the_server_does_not_read_is_not_the_clients(start_server: StartServer) -> None:
    """Here it does not read because its answers are not read, and so the client cannot finish its message."""
    server = await start_server(message_timeout="500ms", max_message="8m")
    async with server.connect("u") as client:
        await client.ask(type="save_file", sessionId="s", filename="f", content="x" * (6 * MIB))
    async with server.upgraded(buffer=1024) as wire:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a socket's
        read = text(type="read_file", sessionId="s", filename="f")
        many = text(type="ping", more="x" * 1000)
        wire.write(read * 3, many * 2000, many[:500])
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=1.5)
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]  # likewise
        wire.write(many[500:])
        kinds = [json.loads((await wire.frame())[1])["type"] for _ in range(3 + 2001)]
        assert kinds == ["file_content"] * 3 + ["pong"] * 2001


async def test_a_client_that_does_not_hear_the_goodbye_is_dropped(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "CLOSE_TIMEOUT", 0.2)
    server = await start_server(message_timeout="100ms")
    async with server.upgraded() as wire:
        wire.write(masked(1, b"{", length=50))
        assert (await wire.ending())[1] == 1008
        assert await wire.everything() == b""


async def test_an_upload_counts_and_is_answered_when_it_is_ended(server: RunningServer) -> None:
    """Here one user has seven uploads, and another needs what they hold."""
    async with AsyncExitStack() as stack:
        uploads = [await stack.enter_async_context(server.wire()) for _ in range(8)]
        for number, wire in enumerate(uploads):
            wire.write(
                f"PUT /api/sessions/s/files/{number}?user_id=up HTTP/1.1\r\nHost: localhost\r\n"
                "Content-Length: 1000\r\n\r\nbegun".encode()
            )
        for _ in range(2):
            await unfinished(await stack.enter_async_context(server.upgraded("small")), MIB // 2)
        async with asyncio.timeout(PATIENCE):
            answers = [asyncio.create_task(wire.head()) for wire in uploads]
            done, going_on = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().split()[1] for task in done} == {b"503"}
        for task in going_on:
            task.cancel()
        await asyncio.wait(answers)
        await works(server)


async def test_heads_of_requests_count(start_server: StartServer) -> None:
    server = await start_server(max_message="1m", max_buffered="1m")
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(server.wire()) for _ in range(20)]
        for wire in wires:
            wire.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"X: %s\r\n" % (b"y" * 8000) * 10)
        heads = [asyncio.create_task(wire.head()) for wire in wires]
        done, _ = await asyncio.wait(heads, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().split()[1] for task in done} == {b"503"}
        for task in heads:
            task.cancel()
        await asyncio.wait(heads)
        async with server.wire() as wire:
            wire.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await wire.head()).split()[1] == b"200"
