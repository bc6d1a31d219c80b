"""A server is killed, and its engine is down or stands still when, or while, the next one takes its sessions over."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.adoption.house import House, begin, docker_only, result, resume, touch, until_there
from tests.docker.faulty_engine import CuttableWire, PrivateEngine, cuttable_wire

pytestmark = docker_only

TOLD = 30.0
"""Seconds in which a server that cannot start has to end: ten are promised, on a machine that is not busy."""
STOPPED = 20.0
"""Seconds beyond its `stop_timeout` in which one has to end: twelve are promised, on a machine that is not busy."""
UNTIL_GO = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\nprint(x)"


@pytest.fixture
async def wire() -> AsyncIterator[CuttableWire]:
    with tempfile.TemporaryDirectory(prefix="kb-") as home:
        async with cuttable_wire(Path(home) / "engine") as made:
            yield made


async def killed(house: House) -> dict[str, bytes]:
    """Leave a session with a running cell and a terminal; give what is noted of it."""
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("x = 1")
        await client.shell("setsid sleep 4444 &")
        await begin(client, UNTIL_GO, "cell")
        await client.send(type="open_terminal", sessionId="s", terminalId="t", rows=10, cols=40)
        while (await client.receive())["type"] != "terminal_opened":
            pass
        await server.kill()
    return noted(house)


def noted(house: House) -> dict[str, bytes]:
    """Give what is noted of sessions."""
    return {path.name: path.read_bytes() for path in (house.data_dir / "state").iterdir()}


@asynccontextmanager
async def gone_on_with(house: House, containers: list[str], **environ: str) -> AsyncIterator[None]:
    """Start a server; after the block, see that the session is what it was, and nothing else is there."""
    server = await house.serve(linger="60s", **environ)
    async with house.connect(server) as client:
        await resume(client)
        yield
        touch(house.files("s"), "go")
        frames = [await client.receive()]
        while frames[-1]["type"] != "execution_result":
            frames.append(await client.receive())
        assert (frames[-1]["requestId"], frames[-1]["output"]) == ("cell", "1\n")
        await client.send(
            type="terminal_command", sessionId="s", command="cat /proc/[0-9]*/cmdline | tr '\\0' ' '", requestId="ps"
        )
        while frames[-1].get("requestId") != "ps":
            frames.append(await client.receive())
        assert "4444" in frames[-1]["output"]
        assert [frame["terminalId"] for frame in frames if frame["type"] == "terminal_closed"] == []
        assert await asyncio.to_thread(house.containers) == containers
        await client.send(type="execute_code", sessionId="s", code="print(x + 1)", requestId="next")
        assert (await result(client, "next"))["output"] == "2\n"
        await server.stop()
    assert await asyncio.to_thread(house.left) == []


async def test_a_server_whose_engine_is_down_says_so_and_costs_no_session(house: House) -> None:
    notes = await killed(house)
    containers = house.containers()
    said = await house.cannot_serve(seconds=TOLD, DOCKER_HOST="unix:///nowhere.sock")
    assert "The Docker engine does not answer" in said
    assert "start the Docker engine" in said
    assert noted(house) == notes
    async with gone_on_with(house, containers):
        pass


async def test_a_server_whose_engine_is_frozen_says_so_and_costs_no_session(
    engine_home: Path, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await PrivateEngine.start(engine_home)
    try:
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        notes = await killed(house)
        containers = house.containers()
        engine.freeze()
        try:
            said = await house.cannot_serve(seconds=TOLD)
        finally:
            engine.thaw()
        assert "The Docker engine does not answer" in said
        assert "restart the engine" in said
        assert noted(house) == notes
        async with gone_on_with(house, containers):
            pass
    finally:
        await engine.stop()


@pytest.mark.parametrize(
    "request_line", [b"/images/", b"/events", b"GET .*/containers/json", b"GET .*/containers/[0-9a-f]+/json"]
)
async def test_an_engine_that_freezes_during_the_start_is_said_to_and_costs_no_session(
    house: House, wire: CuttableWire, request_line: bytes
) -> None:
    notes = await killed(house)
    containers = house.containers()
    wire.hold(request_line)
    said = await house.cannot_serve(seconds=TOLD, DOCKER_HOST=f"unix://{wire.path}")
    assert "The Docker engine" in said
    assert "restart the engine" in said
    assert noted(house) == notes
    wire.release()
    async with gone_on_with(house, containers, DOCKER_HOST=f"unix://{wire.path}"):
        pass


async def test_an_engine_that_freezes_when_the_containers_are_found_costs_no_session(
    house: House, wire: CuttableWire
) -> None:
    """Neither to take a session over nor to leave it to the next server needs the engine."""
    await killed(house)
    containers = house.containers()
    server = await house.serve("--keep-sandboxes", DOCKER_HOST=f"unix://{wire.path}")
    async with house.connect(server) as client:
        wire.hold(b"")
        await resume(client)
        command = "setsid sleep 5555 &"
        await client.send(type="terminal_command", sessionId="s", command=command, requestId="command")
        assert (await client.answer_to("command"))["exitCode"] == 0
        await server.stop()
    wire.release()
    async with gone_on_with(house, containers):
        pass


async def test_a_server_is_stopped_in_time_while_its_engine_is_frozen_and_the_next_one_removes_what_is_left(
    engine_home: Path, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_timeout = 1.0
    engine = await PrivateEngine.start(engine_home)
    try:
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        server = await house.serve("--stop-timeout", f"{stop_timeout:g}s", "--idle-timeout", "1s")
        async with house.connect(server) as client:
            await client.run("x = 1")
            await client.run("x = 1", session="idle")
            await client.send(type="session_info", sessionId="idle", requestId="i")
            while (await client.answer_to("i"))["state"] != "paused":
                await client.send(type="session_info", sessionId="idle", requestId="i")
            await begin(client, "import time; time.sleep(1000)", "cell")
            await client.send(
                type="terminal_command", sessionId="s", command="touch began; sleep 1000", requestId="command"
            )
            await until_there(house.files("s") / "began")
            containers = await asyncio.to_thread(house.containers)
            assert len(containers) == 2
            engine.freeze()
            try:
                async with asyncio.timeout(STOPPED + stop_timeout):
                    stopping = asyncio.create_task(server.stop())
                    for request_id in ("cell", "command"):
                        assert (await client.answer_to(request_id))["cause"] == "session_closed"
                    while (await client.ws.receive()).type is aiohttp.WSMsgType.TEXT:
                        pass
                    assert client.ws.close_code == aiohttp.WSCloseCode.GOING_AWAY
                    await stopping
            finally:
                engine.thaw()
        said = server.log.read_text()
        for container in containers:
            assert any("container_left_behind" in line and container in line for line in said.splitlines())
        server = await house.serve()
        await house.until_nothing_is_left()  # the engine may still be at what the first one had asked for
        await server.stop()
    finally:
        await engine.stop()
