"""The time of a cell that one server begins and another ends."""

import asyncio

import pytest
from msgspec import structs

from kernelbridge.workspace.adoption.session_state import RunningCell, read_running, write_running
from tests.adoption.house import House, begin, result, resume, touch, until


async def time_passes(seconds: float) -> None:
    """Let time go by, of which it is the question whether it counts."""
    await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=seconds)


async def test_a_time_limit_holds_over_the_end_of_a_server(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await begin(client, "import time; time.sleep(1000)", "cell", timeout=3)
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        answer = await result(client, "cell")
        assert (answer["cause"], answer["statePreserved"]) == ("timeout", True)


async def test_the_time_for_which_a_cell_waited_for_input_does_not_count(house: House) -> None:
    server = await house.serve()
    limit = 3.0
    async with house.connect(server) as client:
        code = "import time\nprint('hello', input('name? '))\ntime.sleep(1000)"
        await begin(client, code, "cell", allowStdin=True, timeout=limit)
        while (await client.receive())["type"] != "input_request":
            pass
        await time_passes(1.2 * limit)
        await server.kill()
    await time_passes(1.2 * limit)
    for _ in range(2):
        server = await house.serve()
        async with house.connect(server) as client:
            await resume(client)
            while (asked := await client.receive())["type"] != "input_request":
                pass
            await time_passes(1.2 * limit)
            await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        while (asked := await client.receive())["type"] != "input_request":
            pass
        await client.send(type="input_reply", sessionId="s", value="Ada", inputId=asked["inputId"])
        answer = await result(client, "cell")
        assert (answer["cause"], answer["statePreserved"]) == ("timeout", True)
        assert "hello Ada\n" in answer["output"]


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
async def test_a_jump_of_the_clock_between_two_servers_changes_no_time_limit(house: House, jump: float) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await begin(client, f"{until('go')}\nprint('went')\n{until('never')}", "cell", timeout=12)
        await server.kill()
    note = house.state("s").with_suffix(".cell")
    cell = read_running(note.read_bytes(), RunningCell)
    assert cell is not None
    note.write_bytes(write_running(structs.replace(cell, since=cell.since + jump)))
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        touch(house.files("s"), "go")
        answer = await result(client, "cell")
        assert (answer["output"], answer["cause"], answer["statePreserved"]) == ("went\n", "timeout", True)
        assert 12_000 <= answer["durationMs"] < 60_000
