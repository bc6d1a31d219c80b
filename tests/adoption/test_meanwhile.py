"""What comes while a killed server's sessions are taken over, from an agent that takes its time."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.adoption.house import House, begin, docker_only, result, resume
from tests.contract.driving import signal_on_host
from tests.integration.conftest import Client

pytestmark = docker_only

FOR_EVER = "print('before')\nwhile True: time.sleep(0.01)"
LATE = 1.0
"""Seconds in which the requests below have come, before the agent continues."""


@asynccontextmanager
async def taken_over_late(house: House, code: str | None) -> AsyncIterator[Client]:
    """Kill a server, and give a connection to the next one, which has not got at its sandbox yet."""
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("import time; x = 1")
        if code is not None:
            await begin(client, code, "cell")
        await server.kill()
    agent = house.agent()
    await asyncio.to_thread(signal_on_host, agent, signal.SIGSTOP)
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        await client.send(type="session_info", sessionId="s", requestId="info")
        info = await client.answer_to("info")
        assert (info["state"], info["kernelState"]) == ("starting", "starting")
        continued = asyncio.create_task(continue_late(agent))
        yield client
        await continued


async def continue_late(pid: int) -> None:
    await asyncio.sleep(LATE)
    with contextlib.suppress(ProcessLookupError):  # the end of a session waits for no agent
        await asyncio.to_thread(signal_on_host, pid, signal.SIGCONT)


async def test_an_interrupt_reaches_the_cell(house: House) -> None:
    async with taken_over_late(house, FOR_EVER) as client:
        await client.send(type="interrupt", sessionId="s", requestId="stop")
        await client.send(type="execute_code", sessionId="s", code="print(x)", requestId="next")
        told = await client.answer_to("stop")
        assert (told["step"], told["done"], told["statePreserved"]) == ("sigint", True, True)
        answer = await result(client, "cell")
        assert (answer["cause"], answer["error"], answer["output"]) == ("interrupted", "KeyboardInterrupt", "before\n")
        assert (await result(client, "next"))["output"] == "1\n"


@pytest.mark.parametrize("code", [FOR_EVER, None], ids=["in a cell", "between two"])
async def test_a_restart_ends_the_interpreter(house: House, code: str | None) -> None:
    async with taken_over_late(house, code) as client:
        await client.send(type="restart_kernel", sessionId="s", requestId="restart")
        await client.send(type="execute_code", sessionId="s", code="print('x' in globals())", requestId="next")
        if code is not None:
            answer = await result(client, "cell")
            assert (answer["cause"], answer["output"]) == ("kernel_restarted", "before\n")
            assert answer["statePreserved"] is False
        restarted = await client.answer_to("restart")
        assert (restarted["type"], restarted["ended"]) == ("kernel_restarted", 0 if code is None else 1)
        answer = await result(client, "next")
        assert (answer["output"], answer["statePreserved"]) == ("False\n", False)


async def test_the_end_of_the_session_is_answered_to_all(house: House) -> None:
    async with taken_over_late(house, FOR_EVER) as client:
        await client.send(type="interrupt", sessionId="s", requestId="stop")
        await client.send(type="restart_kernel", sessionId="s", requestId="restart")
        await client.send(type="execute_code", sessionId="s", code="1", requestId="waits")
        await client.send(type="close_session", sessionId="s", requestId="close")
        assert (await client.answer_to("close"))["closed"]
        assert (await client.answer_to("cell"))["cause"] == "session_closed"
        assert (await client.answer_to("waits"))["cause"] == "session_closed"
        assert (await client.answer_to("stop"))["statePreserved"] is False
        assert (await client.answer_to("restart"))["code"] == "kernel_failed"
        async with asyncio.timeout(60):
            await house.until_nothing_is_left()
