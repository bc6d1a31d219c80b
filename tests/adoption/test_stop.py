"""A server is told to stop: it waits, ends what runs, and removes its sandboxes; or leaves them to the next server."""

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.adoption.house import House, begin, docker_only, result, resume, touch
from tests.contract.driving import on_host
from tests.faults.slow_engine import late_answers
from tests.integration.conftest import PATIENCE, Client, Frame

UNTIL_GO = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\nprint('went')\n"


async def test_a_cell_that_ends_in_time_is_answered_and_nothing_is_left(house: House) -> None:
    server = await house.serve("--stop-timeout", "60s")
    async with house.connect(server, streams=True) as client:
        await begin(client, UNTIL_GO, "a")
        await client.send(type="execute_code", sessionId="s", code="print('never')", requestId="b")
        await client.send(type="ping", requestId="p")
        await client.answer_to("p")
        stopping = asyncio.create_task(server.stop())
        frames = await until_closed(client, on_closing=lambda: touch(house.files("s"), "go"))
        await stopping
    (closing,) = [frame for frame in frames if frame.get("status") == "closing"]
    assert "60 s" in closing["detail"]
    results = {frame["requestId"]: frame for frame in frames if frame["type"] == "execution_result"}
    assert results["b"]["cause"] == "session_closed"
    assert (results["a"]["output"], results["a"]["success"]) == ("went\n", True)
    assert frames.index(results["b"]) < frames.index(results["a"])
    (refused,) = [frame for frame in frames if frame.get("requestId") == "new"]
    assert "stopping" in refused["message"]
    assert house.left() == []


async def until_closed(client: Client, *, on_closing: Callable[[], None] | None = None) -> list[Frame]:
    """Give all frames up to the close, which has code 1001; who wants `closing` asks for another session then."""
    frames = client.frames
    while True:
        message = await asyncio.wait_for(client.ws.receive(), PATIENCE)
        if message.type is not aiohttp.WSMsgType.TEXT:
            assert client.ws.close_code == aiohttp.WSCloseCode.GOING_AWAY
            return frames
        frames.append(message.json())
        if on_closing is None:
            continue
        if frames[-1].get("status") == "closing":
            await client.send(type="execute_code", sessionId="new", code="1", requestId="new")
        elif frames[-1].get("requestId") == "new":
            on_closing()


async def test_what_does_not_end_in_time_is_ended_and_nothing_is_left(house: House) -> None:
    server = await house.serve("--stop-timeout", "1s")
    async with house.connect(server) as client:
        await begin(client, "import time; time.sleep(1000)", "a")
        await client.send(type="terminal_command", sessionId="s", command="sleep 1000", requestId="t")
        stopping = asyncio.create_task(server.stop())
        assert (await client.answer_to("a"))["cause"] == "session_closed"
        assert (await client.answer_to("t"))["cause"] == "session_closed"
        await stopping
    assert house.left() == []


async def test_a_second_signal_waits_for_nothing(house: House) -> None:
    server = await house.serve("--stop-timeout", "1h")
    async with house.connect(server) as client:
        await begin(client, "import time; time.sleep(1000)", "a")
        await client.send(type="execute_code", sessionId="s", code="1", requestId="b")
        server.process.send_signal(signal.SIGINT)
        assert (await client.answer_to("b"))["cause"] == "session_closed"
        await server.stop()
        assert (await client.answer_to("a"))["cause"] == "session_closed"
    assert house.left() == []


async def test_who_goes_on_sending_hears_the_end_all_the_same(house: House) -> None:
    """What nobody reads any more must not reset the connection before its client has read why it ends."""
    server = await house.serve("--stop-timeout", "0")
    async with house.connect(server) as client:
        await begin(client, "import time; time.sleep(1000)", "a")
        stopping = asyncio.create_task(server.stop())

        async def go_on() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await client.send(type="save_file", sessionId="s", filename="f", content="x" * 2000)
                    await asyncio.sleep(0)

        sending = asyncio.create_task(go_on())
        while (message := await asyncio.wait_for(client.ws.receive(), PATIENCE)).type is aiohttp.WSMsgType.TEXT:
            pass
        assert (message.type, client.ws.close_code) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.GOING_AWAY)
        await sending
        await stopping


async def test_what_runs_can_be_interrupted_meanwhile(house: House) -> None:
    server = await house.serve("--stop-timeout", "1h")
    async with house.connect(server) as client:
        await begin(client, "import time; time.sleep(1000)", "a")
        await client.send(type="execute_code", sessionId="s", code="1", requestId="b")
        stopping = asyncio.create_task(server.stop())
        assert (await client.answer_to("b"))["cause"] == "session_closed"
        await client.send(type="interrupt", sessionId="s")
        assert (await client.answer_to("a"))["cause"] == "interrupted"
        await stopping
    assert house.left() == []


async def test_an_upgrade_costs_no_running_cell(house: House) -> None:
    server = await house.serve("--keep-sandboxes")
    async with house.connect(server) as client, house.connect(server) as follower:
        await client.run("x = 42")
        await resume(follower)
        await begin(client, f"print('old')\n{UNTIL_GO}print(x)", "a")
        await client.send(type="execute_code", sessionId="s", code="x = 0", requestId="b")
        stopping = asyncio.create_task(server.stop())
        assert (await client.answer_to("b"))["cause"] == "session_closed"
        # The session goes on, and so nobody is told that it ends.
        told = await until_closed(follower)
        assert [frame["status"] for frame in told if frame["type"] == "session_status"] == ["starting", "ready"]
        await stopping
    sandboxes = house.sandboxes()
    for _ in range(2):  # and again, from a server that has taken it over itself
        server = await house.serve("--keep-sandboxes")
        async with house.connect(server) as client:
            await resume(client)
            await client.send(type="session_info", sessionId="s", requestId="i")
            assert (await client.answer_to("i"))["runningSince"]
        await server.stop()
    server = await house.serve(linger="2s")
    async with house.connect(server) as client:
        await resume(client)
        touch(house.files("s"), "go")
        assert (await result(client, "a"))["output"] == "old\nwent\n42\n"
        assert house.sandboxes() == sandboxes
    await house.until_nothing_is_left()


async def test_a_paused_session_ends_in_time_and_nothing_is_left(house: House) -> None:
    """What stands still could neither end nor be ended: it must not use up, or outlive, the time that there is."""
    server = await house.serve("--idle-timeout", "300ms", "--stop-timeout", "1h")
    async with house.connect(server, streams=True) as client:
        mark = f"86{secrets.randbelow(10**9):09}"
        await client.send(type="terminal_command", sessionId="s", command=f"sleep {mark} &", requestId="t")
        code = f"import subprocess; child = subprocess.Popen(['sleep', '{mark}'])"
        await client.send(type="execute_code", sessionId="s", code=code, requestId="a")
        frames: list[Frame] = []
        while not frames or frames[-1].get("status") != "paused":
            frames.append(await client.receive())
        assert {"t", "a"} <= {frame.get("requestId") for frame in frames}
        assert len(on_host(mark)) == 2
        client.frames.clear()
        stopping = asyncio.create_task(server.stop())
        told = await until_closed(client)
        assert "closing" in [frame.get("status") for frame in told]
        await stopping
    assert house.left() == []
    assert on_host(mark) == []


@docker_only
@pytest.mark.parametrize("stop_timeout", ["60s", "0"])
async def test_what_a_container_is_being_made_for_is_answered_and_nothing_is_left(
    house: House, tmp_path: Path, stop_timeout: str
) -> None:
    async with late_answers(tmp_path / "engine.sock") as wire:
        server = await house.serve("--stop-timeout", stop_timeout, DOCKER_HOST=f"unix://{wire.path}")
        wire.delay(2.0, rb"POST /containers/create")
        async with house.connect(server) as client:
            await client.send(type="execute_code", sessionId="s", code="print(1)", requestId="a")
            await client.send(type="terminal_command", sessionId="s", command="echo 1", requestId="t")
            async with asyncio.timeout(PATIENCE):
                while not await asyncio.to_thread(house.containers, "s"):
                    pass
            # It is there, and the server has not heard so yet.
            stopping = asyncio.create_task(server.stop())
            # The cell waits for an interpreter. The command is the shell's first: it has its time like any that runs.
            assert (await client.answer_to("a"))["cause"] == "session_closed"
            answer = await client.answer_to("t")
            ended = ("", "session_closed") if stop_timeout == "0" else ("1\n", None)
            assert (answer["output"], answer.get("cause")) == ended
            await stopping
    assert house.left() == []
