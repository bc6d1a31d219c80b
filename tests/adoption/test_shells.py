"""The shell and the interactive terminals of a server that ended go on, with what runs in them."""

import asyncio

import pytest

from tests.adoption import house as houses
from tests.adoption.house import House, resume, touch, until_begun, until_there
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
    await until_begun(client, house.files("s") / "began")


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


async def type_and_see(client: Client, terminal: str, text: str, seen: str) -> None:
    """Type into a terminal, and return when it has shown something."""
    await client.send(type="terminal_input", sessionId="s", terminalId=terminal, data=text)
    await see(client, terminal, seen)


async def see(client: Client, terminal: str, seen: str) -> str:
    """Give what a terminal shows until something is there."""
    shown = ""
    while seen not in shown:
        frame = await client.receive()
        if frame["type"] == "terminal_data" and frame["terminalId"] == terminal:
            shown += frame["data"]
    return shown


@pytest.mark.parametrize("how", ["kill", "upgrade"])
async def test_terminals_go_on(house: House, how: str) -> None:
    """With what they have shown, and what they show meanwhile."""
    server = await house.serve("--keep-sandboxes")
    async with house.connect(server) as client, house.connect(server) as leaving:
        await open_terminals(client, "one", "closed")
        await open_terminals(leaving, "unseen")
        await leaving.ws.close()
        await client.send(type="close_terminal", sessionId="s", terminalId="closed")
        while (await client.receive())["type"] != "terminal_closed":
            pass
        await type_and_see(client, "one", "V=kept; echo sh''own\n", "shown")
        await type_and_see(
            client, "one", "until [ -e go ]; do sleep 0.02; done; echo mean''while; touch over\n", "until"
        )
        await client.send(type="terminal_resize", sessionId="s", terminalId="one", rows=33, cols=44)
        await (server.kill() if how == "kill" else server.stop())
    touch(house.files("s"), "go")
    await until_there(house.files("s") / "over")
    for _ in range(2):
        server = await house.serve("--keep-sandboxes")
        async with house.connect(server) as client:
            await client.send(type="session_info", sessionId="s", requestId="i")
            assert set((await client.answer_to("i"))["terminals"]) == {"one", "unseen"}
            await client.send(
                type="open_terminal", sessionId="s", terminalId="one", rows=33, cols=44, requestId="again"
            )
            while (opened := await client.receive())["type"] != "terminal_opened":
                pass
            assert opened["reattached"] is True
            shown = await see(client, "one", "meanwhile")
            assert "shown" in shown
            await type_and_see(client, "one", "echo $V-$(stty size)-\n", "kept-33 44-")
            await (server.kill() if how == "kill" else server.stop())
    assert sorted(path.suffix[:6] for path in (house.data_dir / "state").iterdir() if ".shown" in path.name) == [
        ".shown",
        ".shown",
    ]


async def begin_waiting(house: House, client: Client, **more: object) -> None:
    """Send a command that waits for a file, and return when its first output has come to the server."""
    await client.send(
        type="terminal_command",
        sessionId="s",
        command="for i in 1 2 3; do echo $i; done; sleep 0.3; touch begun; until [ -e go ]; do sleep 0.02; done; "
        "echo $HERE; (exit 7)",
        requestId="c",
        **more,
    )
    await until_there(house.files("s") / "begun")


async def answer(client: Client) -> Frame:
    """Give what the command is answered with by whoever comes after."""
    await resume(client)
    while (frame := await client.receive())["type"] != "terminal_output" or frame.get("requestId") != "c":
        pass
    return frame


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("meanwhile", [False, True])
async def test_a_command_goes_on_and_is_answered_whole(house: House, *, streams: bool, meanwhile: bool) -> None:
    """Whether it ends while there is no server or when there is one again."""
    server = await house.serve()
    async with house.connect(server) as client:
        await client.shell("export HERE=there; cd /tmp; sleep 1000 &")
        await client.shell("cd /workspace")
        await begin_waiting(house, client, stream=streams)
        await client.send(type="terminal_command", sessionId="s", command="touch queued", requestId="queued")
        await server.kill()
    if meanwhile:
        touch(house.files("s"), "go")
    server = await house.serve()
    async with house.connect(server) as client:
        if not meanwhile:
            touch(house.files("s"), "go")
        frame = await answer(client)
        assert (frame["output"], frame["exitCode"]) == ("1\n2\n3\nthere\n", 7)
        assert (frame.get("cause"), frame.get("statePreserved", True)) == (None, True)
        assert 300 < frame["durationMs"] < 60_000
        after = await client.shell("echo $HERE $OLDPWD $(jobs | grep -c Running)")
        assert (after["output"], after.get("statePreserved", True)) == ("there /tmp 1\n", True)
    assert not (house.files("s") / "queued").exists()


async def test_an_idle_shell_goes_on_and_again(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.shell("V=kept; f() { echo f; }; { until [ -e go ]; do sleep 0.02; done; echo late; } & cd /tmp")
        await server.kill()
    for _ in range(2):
        server = await house.serve()
        async with house.connect(server) as client:
            frame = await client.shell("echo $V; f")
            assert (frame["output"], frame["cwd"], frame.get("statePreserved", True)) == ("kept\nf\n", "/tmp", True)
            await server.kill()
    touch(house.files("s"), "go")
    server = await house.serve()
    async with house.connect(server) as client:
        late = await client.shell("wait")
        while not late.get("lateOutput"):
            late = await client.shell("true")
        assert late["lateOutput"] == "late\n"


async def test_a_command_of_an_earlier_server_can_be_interrupted(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.shell("sleep 1000 & V=kept")
        await begin_waiting(house, client)
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        await client.send(type="interrupt", sessionId="s", target="terminal", requestId="i")
        frame = await answer(client)
        assert (frame["output"].rstrip(), frame["cause"], frame["exitCode"]) == ("1\n2\n3", "interrupted", 130)
        after = await client.shell("echo $V $(jobs | grep -c Running)")
        assert (after["output"], after.get("statePreserved", True)) == ("kept 1\n", True)


async def test_a_command_has_the_rest_of_its_time(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await begin_waiting(house, client, timeout=3)
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        frame = await answer(client)
        assert (frame["output"].rstrip(), frame["cause"]) == ("1\n2\n3", "timeout")
        assert frame.get("statePreserved", True)


async def test_a_shell_that_ended_while_there_was_no_server_is_told_of(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.send(
            type="terminal_command",
            sessionId="s",
            command="echo heard; touch begun; until [ -e go ]; do sleep 0.02; done; exit 5",
            requestId="c",
        )
        await until_there(house.files("s") / "begun")
        await server.kill()
    touch(house.files("s"), "go")
    server = await house.serve()
    async with house.connect(server) as client:
        frame = await answer(client)
        assert (frame["output"], frame["cause"], frame["exitCode"]) == ("heard\n", "shell_exited", 5)
        assert frame.get("statePreserved", True) is False
        assert (await client.shell("echo new")).get("statePreserved", True)


async def test_they_have_ended_with_their_sandbox(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.shell("true")
        await open_terminals(client, "t")
        await begin_command(house, client, "c")
        await server.kill()
    for sandbox in house.sandboxes():
        house.destroy(sandbox)
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


async def test_a_command_goes_on_over_an_upgrade_which_does_not_wait_for_it(house: House) -> None:
    server = await house.serve("--keep-sandboxes", "--stop-timeout", "60s")
    async with house.connect(server) as client:
        await client.shell("export HERE=there")
        await begin_waiting(house, client)
        await client.send(type="terminal_command", sessionId="s", command="touch queued", requestId="queued")
        async with asyncio.timeout(30):
            await server.stop()
        while (frame := await client.receive()).get("requestId") != "queued":
            assert frame.get("requestId") != "c"
        assert frame["cause"] == "session_closed"
    server = await house.serve()
    async with house.connect(server) as client:
        touch(house.files("s"), "go")
        frame = await answer(client)
        assert (frame["output"], frame["exitCode"], frame.get("statePreserved", True)) == ("1\n2\n3\nthere\n", 7, True)


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
