"""Every limit, past which a request is refused with a clear error that may be tried again, and nothing is lost."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp

from tests.integration.conftest import PATIENCE, RunningServer, StartServer
from tests.integration.test_transfers import fetch, root

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""


async def test_connections_of_one_user(start_server: StartServer) -> None:
    server = await start_server(max_connections_per_user="2")
    async with server.connect("a") as first, server.connect("b") as other:
        async with server.connect("a") as second:
            async with server.http.ws_connect(server.url + "?user_id=a") as refused:
                frame = json.loads((await refused.receive(PATIENCE)).data)
                assert (frame["type"], frame["code"], frame["retryable"]) == ("error", "limit_exceeded", True)
                assert "limit is 2" in frame["error"]
                closing = await refused.receive(PATIENCE)
                assert (closing.type, closing.data) == (aiohttp.WSMsgType.CLOSE, 1013)
            for client in (first, second, other):
                assert (await client.ask(type="ping"))["type"] == "pong"
        # One that has gone makes room, as soon as the server has noticed.
        async with asyncio.timeout(PATIENCE):
            while True:
                async with server.http.ws_connect(server.url + "?user_id=a") as again:
                    if json.loads((await again.receive(PATIENCE)).data)["type"] == "connected":
                        break


async def test_sessions_in_all(start_server: StartServer) -> None:
    server = await start_server(max_sessions="2")
    async with server.connect("a") as a, server.connect("b") as b:
        for session in ("1", "2"):
            assert (await a.run("x = 41", session=session))["success"]
        refused = await b.run("1", session="1", requestId="r")
        assert (refused["type"], refused["code"], refused["retryable"]) == ("error", "limit_exceeded", True)
        assert (refused["sessionId"], refused["requestId"]) == ("1", "r")
        assert "limit is 2" in refused["error"]
        assert (await a.run("print(x)", session="1"))["output"] == "41\n"
        assert (await a.ask(type="close_session", sessionId="2"))["closed"]
        assert (await b.run("print(7)", session="1"))["output"] == "7\n"


async def test_sessions_that_http_makes_count_while_they_are_made(start_server: StartServer) -> None:
    server = await start_server(max_sessions="1")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"x"
        begun.set()
        await go_on.wait()

    async with server.connect("u") as client:
        sending = asyncio.create_task(fetch(server, "f", "PUT", session="made", data=slowly()))
        await begun.wait()
        async with asyncio.timeout(PATIENCE):
            while not (root(server, session="made")).exists():
                await asyncio.wait({sending}, timeout=0.01)
        refused = await client.run("1", session="another")
        assert (refused["code"], "limit is 1" in refused["error"]) == ("limit_exceeded", True)
        go_on.set()
        assert (await sending).status == 201
        assert (await client.run("print(1)", session="another"))["output"] == "1\n"
        response = await fetch(server, "g", "PUT", session="third", data=b"x")
        assert (response.status, (await response.json())["code"]) == (429, "limit_exceeded")
        assert not root(server, session="third").exists()
        assert (await fetch(server, "g", "PUT", session="another", data=b"x")).status == 201
        assert await (await fetch(server, "f", session="made")).read() == b"x"


async def test_who_sends_faster_than_the_rate_is_read_later_and_loses_nothing(start_server: StartServer) -> None:
    server = await start_server(request_rate="20")
    async with server.connect("u") as client, server.connect("another") as other:
        for number in range(130):  # a connection has 10 in a second, and 100 at once
            await client.send(type="ping", requestId=str(number))
        await client.answer_to("99")
        began = time.monotonic()
        assert (await other.ask(type="ping"))["type"] == "pong"
        await client.answer_to("129")
        assert time.monotonic() - began > 1


async def test_starts_of_sandboxes(start_server: StartServer) -> None:
    server = await start_server(start_rate="0.1")
    async with server.connect("u") as client, server.connect("another") as other:
        assert (await client.shell("true"))["exitCode"] == 0
        await client.ask(type="close_session", sessionId="s")
        refused = await client.shell("true")
        assert (refused["code"], refused["retryable"]) == ("limit_exceeded", True)
        assert "--start-rate" in refused["error"]
        assert (await other.shell("true"))["exitCode"] == 0


async def test_terminal_commands_that_wait(start_server: StartServer) -> None:
    server = await start_server(queue_limit="3")
    async with server.connect("u") as client, server.connect("u") as other:
        await client.shell("mkfifo runs go")
        await client.send(type="terminal_command", sessionId="s", command="echo yes >runs; cat go", requestId="runs")
        assert (await other.run("print(open('runs').read())"))["success"]
        for number in range(10):
            await client.send(type="terminal_command", sessionId="s", command=f"echo {number}", requestId=str(number))
        for number in range(3, 10):
            refused = await client.receive()
            assert (refused["type"], refused["code"], refused["retryable"]) == ("error", "limit_exceeded", True)
            assert (refused["sessionId"], refused["requestId"]) == ("s", str(number))
            assert "limit is 3" in refused["error"]
        # One past it is one for whoever asks; cells have a limit of their own, and nothing that was taken is lost.
        assert (await other.shell("true"))["code"] == "limit_exceeded"
        assert (await other.run("with open('go', 'w') as go: go.write('went')"))["success"]
        assert [(await client.receive())["output"] for _ in range(4)] == ["went", "0\n", "1\n", "2\n"]
        assert (await client.shell("echo again"))["output"] == "again\n"


async def test_deletions_of_what_is_not_open_are_read_one_by_one(server: RunningServer) -> None:
    """However many a client sends, the server holds one of them."""
    async with server.connect("u") as client:
        for number in range(50):
            await client.send(type="close_session", sessionId=str(number), deleteFiles=True, requestId=str(number))
            await client.send(type="ping", requestId=f"behind {number}")
        for number in range(50):
            assert (await client.receive())["requestId"] == str(number)
            assert (await client.receive())["requestId"] == f"behind {number}"


async def test_many_sessions_started_at_once_by_one_user_keep_another_waiting_for_one(
    start_server: StartServer,
) -> None:
    server = await start_server(max_starts="1")
    finished: list[str] = []
    async with AsyncExitStack() as stack:
        many = [await stack.enter_async_context(server.connect("many")) for _ in range(5)]
        one = await stack.enter_async_context(server.connect("one"))
        starting = [
            asyncio.create_task(client.run(f"print({number})", session=f"s{number}"))
            for number, client in enumerate(many)
        ]
        async with server.connect("many") as watching:
            # All of them have been asked for before the other user comes.
            while len((await watching.ask(type="list_sessions"))["sessions"]) < len(many):
                pass
        mine = asyncio.create_task(one.shell("echo mine"))
        for task in starting:
            task.add_done_callback(lambda _: finished.append("many"))
        mine.add_done_callback(lambda _: finished.append("one"))
        results = await asyncio.gather(*starting)
        assert [frame["output"] for frame in results] == [f"{number}\n" for number in range(len(many))]
        assert (await mine)["output"] == "mine\n"
        assert finished.index("one") < len(many)
