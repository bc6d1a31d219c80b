"""Connections come, go, read slowly or not at all: what a terminal has to say is not lost, and nobody else waits."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from kernelbridge.workspace.terminals import terminal
from kernelbridge.workspace.terminals.scrollback import LIMIT
from tests.integration.conftest import Frame, RunningServer, StartServer, on_both_runtimes
from tests.integration.emulator import Person
from tests.integration.test_slow_clients import deaf_client, frame

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""

COUNT = "n=0; while [ $n -lt {count} ]; do n=$((n+1)); echo \"<$n>\"; done; echo fini''shed\r"
COUNT_WITH_A_BREAK = (
    'n=0; while [ $n -lt 20000 ]; do n=$((n+1)); echo "<$n>"; '
    "[ $n != 15000 ] || until [ -e go ]; do :; done; done; echo fini''shed\r"
)


@pytest.fixture
async def lingering(share_server: StartServer) -> RunningServer:
    return await share_server(linger="60s")


def shown(frames: list[Frame]) -> list[int]:
    text = "".join(frame["data"] for frame in frames if frame["type"] == "terminal_data")
    return [int(number) for number in re.findall(r"<(\d+)>\r\n", text)]


@on_both_runtimes
async def test_a_terminal_outlives_its_connection(lingering: RunningServer) -> None:
    async with lingering.connect("u") as client:
        person = await Person.open(client, terminalId="mine")
        await person.prompt()
        await person.type("x=4; sh -c 'echo sta''rted; exec cat'\r")
        await person.until("started")
        await person.type("typed\r")
        await person.until("typed\ntyped\n")
        before = person.text
    async with lingering.connect("u") as client:
        person = await Person.open(client, terminalId="mine", requestId="again", rows=24, cols=80)
        assert person.opened["reattached"] is True
        first = await person.next()
        assert first["replay"] is True
        assert "leftOut" not in first
        await person.until(before)
        await person.type("\x04")
        await person.prompt()
        await person.type("echo $((x * 10 + 2))\r")
        await person.until("\n42\n")
        assert "replay" not in person.frames[-1]
        assert {frame["requestId"] for frame in person.frames} == {"again"}


async def test_who_comes_back_with_another_size_sees_it_applied(lingering: RunningServer) -> None:
    async with lingering.connect("u") as client:
        person = await Person.open(client, terminalId="mine", rows=24, cols=80)
        await person.prompt()
    async with lingering.connect("u") as client:
        person = await Person.open(client, terminalId="mine", rows=50, cols=132)
        assert (person.opened["rows"], person.opened["cols"]) == (50, 132)
        await person.type("stty size\r")
        await person.until("\n50 132\n")


async def test_who_comes_in_the_middle_misses_nothing_and_gets_nothing_twice(lingering: RunningServer) -> None:
    async with lingering.connect("u") as one, lingering.connect("u") as two:
        first = await Person.open(one, terminalId="t")
        await first.prompt()
        await first.type(COUNT_WITH_A_BREAK)
        await first.until_sent("<3000>")
        second = await Person.open(two, terminalId="t")
        # However fast the shell is, there is something to come when the second is there.
        async with lingering.connect("u") as other:
            saved = await other.ask(type="save_file", sessionId="s", filename="go", content="")
            assert saved["success"], saved
        await asyncio.gather(first.until_sent("finished"), second.until_sent("finished"))
        assert shown(first.frames) == list(range(1, 20_001))
        assert shown(second.frames) == list(range(1, 20_001))
        assert any("replay" in frame for frame in second.frames)
        assert any("replay" not in frame for frame in second.frames)
        # Both see what either types.
        await second.type("echo $((6*7))\r")
        await asyncio.gather(first.until("\n42\n"), second.until("\n42\n"))


async def test_the_replay_is_the_latest_and_says_what_is_older(lingering: RunningServer) -> None:
    async with lingering.connect("u") as one, lingering.connect("u") as two:
        first = await Person.open(one, terminalId="t")
        await first.prompt()
        first.draws = False
        await first.type(COUNT.format(count=300_000))
        await first.until_sent("finished")
        await first.type("cat\r")
        await first.until_sent("cat\r\n")
        second = await Person.open(two, terminalId="t")
        second.draws = False
        await second.until_sent("cat\r\n")
        replayed = "".join(frame["data"] for frame in second.frames)
        assert LIMIT - 100 <= len(replayed.encode()) <= LIMIT
        assert second.frames[0]["leftOut"] + len(replayed.encode()) == len(first.data.encode())
        assert first.data.endswith(replayed)
        assert all("leftOut" not in frame for frame in second.frames[1:])


async def test_a_second_request_of_one_connection_replaces_the_first(lingering: RunningServer) -> None:
    async with lingering.connect("u") as client:
        person = await Person.open(client, terminalId="t", requestId="one")
        await person.prompt()
        again = await Person.open(client, terminalId="t", requestId="two")
        assert again.opened["reattached"] is True
        await again.type("echo $((6*7))\r")
        await again.until("\n42\n")
        assert {frame["requestId"] for frame in again.frames} == {"two"}
        await again.send("close_terminal")
        assert "requestId" not in await again.until_closed()


# -- who does not read ------------------------------------------------------------


@pytest.fixture
async def stalled(server: RunningServer) -> AsyncIterator[Person]:
    """A terminal in which `yes` runs, and another connection of its user that shows it and does not read."""
    with deaf_client(server) as deaf:
        async with server.connect("deaf") as client:
            person = await Person.open(client, terminalId="t")
            await person.prompt()
            opening = frame(type="open_terminal", sessionId="s", terminalId="t", requestId="deaf")
            await asyncio.get_running_loop().run_in_executor(None, deaf.sendall, opening)
            yield person


async def test_control_c_ends_what_a_connection_does_not_read(stalled: Person) -> None:
    stalled.draws = False
    await stalled.type("yes; echo en''ded\r")
    await stalled.until_sent("y\r\n" * 1000)
    # Wherever it stands still now, nobody has to read for it to end.
    await stalled.type("\x03")
    await stalled.client.send(
        type="terminal_command",
        sessionId="s",
        command="while ps -eo args | grep -q '^yes$'; do :; done; echo over",
        requestId="ps",
    )
    assert (await stalled.client.answer_to("ps"))["output"] == "over\n"


async def test_who_reads_nothing_is_detached_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, server: RunningServer
) -> None:
    monkeypatch.setattr(terminal, "PATIENCE", 3.0)
    with deaf_client(server) as deaf:
        async with server.connect("deaf") as client:
            person = await Person.open(client, terminalId="t")
            await person.prompt()
            opening = frame(type="open_terminal", sessionId="s", terminalId="t", requestId="deaf")
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, deaf.sendall, opening)
            person.draws = False
            await person.type("yes | head -c 30000000; echo fini''shed\r")
            await person.until_sent("finished")
            assert len(person.data) > 30_000_000
            deaf.settimeout(30)

            def told() -> bytes:
                last = b""
                while b'"too_slow"' not in last:
                    data = deaf.recv(1 << 16)
                    assert data
                    last = (last + data)[-(1 << 17) :]
                return last

            assert b'"requestId":"deaf"' in await loop.run_in_executor(None, told)


async def test_a_terminal_that_nobody_shows_goes_on(lingering: RunningServer) -> None:
    async with lingering.connect("u") as client:
        person = await Person.open(client, terminalId="t")
        await person.prompt()
        await person.type("yes | head -c 20000000; echo >finished\r")
    async with lingering.connect("u") as client:
        assert (await client.shell("until [ -e finished ]; do :; done; echo it is"))["output"] == "it is\n"
        person = await Person.open(client, terminalId="t")
        assert (await person.next())["leftOut"] > 20_000_000
        await person.prompt()


async def test_a_terminal_that_floods_slows_no_cell(server: RunningServer) -> None:
    async with server.connect("u") as flooded, server.connect("v") as neighbour:
        person = await Person.open(flooded, terminalId="t")
        person.draws = False
        await person.type("yes\r")
        await person.until_sent("y\r\n" * 1000)
        assert (await neighbour.run("print(6 * 7)"))["output"] == "42\n"
        await flooded.send(type="execute_code", sessionId="s", code="print(6 * 7)", requestId="cell")
        assert (await flooded.answer_to("cell"))["output"] == "42\n"
        await person.type("\x03")
        await person.until_sent("^C")
