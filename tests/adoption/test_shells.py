"""The shells of a killed server have ended: whoever comes back is told so, of each, and once."""

import asyncio

import pytest

from tests.adoption import house as houses
from tests.adoption.house import House, engine, resume, until_there
from tests.integration.conftest import Client, Frame


async def open_terminals(client: Client, *names: str) -> None:
    for name in names:
        await client.send(type="open_terminal", sessionId="s", terminalId=name, rows=10, cols=40, requestId=name)
        while (await client.receive())["type"] != "terminal_opened":
            pass


async def begin_command(house: House, client: Client, request_id: str, **more: object) -> None:
    """Send a command, another behind it, and return when the first has begun."""
    command = "echo heard; touch began; sleep 1000"
    await client.send(type="terminal_command", sessionId="s", command=command, requestId=request_id, **more)
    await client.send(type="terminal_command", sessionId="s", command="touch queued", requestId="queued")
    await until_there(house.files("s") / "began")


async def told(client: Client, after: int = 0) -> tuple[int, list[Frame]]:
    """Give what a session has told of its shells, and the number of its latest event."""
    await resume(client, after=after)
    # Behind it: nothing of an earlier server's comes after an answer that needs the sandbox.
    await client.send(type="terminal_command", sessionId="s", command="echo next", requestId="next", stream=True)
    frames = []
    while (frame := await client.receive()).get("requestId") != "next" or frame["type"] != "terminal_output":
        frames.append(frame)
    assert frame["output"] == "next\n"
    return frame["seq"], [frame for frame in frames if frame["type"] in {"terminal_closed", "terminal_output"}]


@pytest.mark.parametrize("streams", [False, True])
async def test_the_end_of_terminals_and_of_the_running_command_is_told_once(house: House, *, streams: bool) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.shell("export HERE=1")
        await open_terminals(client, "one", "closed", "two")
        await client.send(type="close_terminal", sessionId="s", terminalId="closed")
        while (await client.receive())["type"] != "terminal_closed":
            pass
        await begin_command(house, client, "c", stream=streams)
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        last, frames = await told(client)
        closed = [frame for frame in frames if frame["type"] == "terminal_closed"]
        assert [(frame["terminalId"], frame["cause"]) for frame in closed] == [("one", "exited"), ("two", "exited")]
        (answer,) = [frame for frame in frames if frame["type"] == "terminal_output"]
        assert (answer["requestId"], answer["cause"], answer["statePreserved"]) == ("c", "shell_exited", False)
        assert answer["durationMs"] > 0
        assert "what it wrote is lost" in answer["hint"]
        numbers = [frame["seq"] for frame in frames]
        assert numbers == sorted(set(numbers))
        await client.send(type="terminal_input", sessionId="s", terminalId="one", data="x", requestId="typed")
        refused = await client.answer_to("typed")
        assert (refused["code"], refused["error"]) == ("unknown_terminal", "it has ended, or was never opened")
    async with house.connect(server) as client:  # it is in the journal, as everything else
        assert (await told(client, after=numbers[0] - 1))[1][: len(frames)] == frames
        await open_terminals(client, "one")
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        _, frames = await told(client, after=last)
        assert [(frame["type"], frame.get("terminalId")) for frame in frames] == [("terminal_closed", "one")]
    assert not (house.files("s") / "queued").exists()


async def test_they_have_ended_with_their_sandbox(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.shell("true")
        await open_terminals(client, "t")
        await begin_command(house, client, "c")
        await server.kill()
    with engine() as api:
        for container in house.containers():
            api.remove_container(container, force=True)
    await ended_with_their_sandbox(house)


async def test_they_have_ended_with_a_local_server(local_house: House) -> None:
    house = local_house
    server = await house.serve()
    async with house.connect(server) as client:
        await client.shell("true")
        await open_terminals(client, "t")
        await begin_command(house, client, "c")
        await server.kill()
    await ended_with_their_sandbox(house)


async def ended_with_their_sandbox(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        _, frames = await told(client)
        assert [(frame["type"], frame["cause"]) for frame in frames] == [
            ("terminal_closed", "sandbox_lost"),
            ("terminal_output", "sandbox_lost"),
        ]
        assert (frames[0]["terminalId"], frames[1]["requestId"]) == ("t", "c")
        assert frames[1]["statePreserved"] is False


async def test_what_was_told_before_an_upgrade_is_not_told_again(house: House) -> None:
    server = await house.serve("--keep-sandboxes", "--stop-timeout", "0.5s")
    async with house.connect(server) as client, house.connect(server) as leaving:
        await open_terminals(client, "seen")
        await open_terminals(leaving, "unseen")
        await leaving.ws.close()
        await begin_command(house, client, "c")
        stopping = asyncio.create_task(server.stop())
        while (closed := await client.receive())["type"] != "terminal_closed":
            if closed.get("requestId") == "c":
                assert closed["cause"] == "session_closed"
        assert (closed["terminalId"], closed["cause"]) == ("seen", "session_closed")
        await stopping
    server = await house.serve()
    async with house.connect(server) as client:
        _, frames = await told(client)
        assert [(frame["type"], frame.get("terminalId")) for frame in frames] == [("terminal_closed", "unseen")]


async def test_they_end_with_a_session_that_is_closed(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await open_terminals(client, "t")
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        await client.ask(type="close_session", sessionId="s")
        await client.send(type="resume", sessionId="s", requestId="r")
        assert (await client.answer_to("r"))["code"] == "unknown_session"
        await server.kill()
    server = await house.serve()
    assert houses.House.left(house) == []
