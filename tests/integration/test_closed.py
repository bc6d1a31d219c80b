"""Whoever comes back to a session that was closed meanwhile is told; and who wants it to live on longer, has that."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernelbridge.server.app import running
from kernelbridge.settings.settings import resolve
from tests.integration.conftest import PATIENCE, Frame, RunningServer, StartServer

STREAM = "u&stream=true"


async def until_closed(server: RunningServer, session: str = "s") -> None:
    """Wait until a session of the user `u` is not open any more."""
    async with server.connect("u") as client, asyncio.timeout(PATIENCE):
        while (await client.ask(type="session_info", sessionId=session))["state"] != "absent":
            await client.ask(type="ping")


async def leave_behind(server: RunningServer, *, cell: str = "", command: str = "") -> None:
    """Use a session, start a cell or a command that does not end, and go."""
    async with server.connect("u") as client:
        await client.run("x = 1")
        await client.shell("y=1; mkfifo gate")
        if cell:
            await client.send(
                type="execute_code", sessionId="s", code=f"open('gate', 'w').close()\n{cell}", requestId="c"
            )
            assert (await client.shell("cat gate"))["exitCode"] == 0
        if command:
            await client.send(type="terminal_command", sessionId="s", command=f": > gate; {command}", requestId="t")
            await client.run("open('gate').close()")


def is_the_notice(frame: Frame) -> None:
    assert (frame["type"], frame["status"], frame["cause"]) == ("session_status", "closed", "session_closed")
    assert frame["closedAt"].endswith("Z")
    assert frame["closedAt"] in frame["detail"]
    assert "no client returned within 0 s" in frame["detail"]


async def test_who_follows_is_told_first_and_once_and_the_first_results_tell_everybody(server: RunningServer) -> None:
    await leave_behind(server, cell="import time; time.sleep(1000)")
    await until_closed(server)
    async with server.connect(STREAM) as client:
        frame = await client.run("print('x' in globals())", requestId="1")
        is_the_notice(frame)
        (ran,) = frame["whatRan"]
        assert (ran["kind"], ran["requestId"]) == ("cell", "c")
        assert ran["code"].endswith("import time; time.sleep(1000)")
        assert ran["since"] < frame["closedAt"]
        assert "answersLost" not in frame
        result = await client.answer_to("1")
        while result["type"] != "execution_result":
            result = await client.answer_to("1")
        assert (result["output"], result["success"], result["statePreserved"]) == ("False\n", True, False)
        assert result["lateOutput"].startswith(
            f"kernelbridge: the interpreter ended when the session was closed at {frame['closedAt']}, because no client"
        )
        assert "a cell (open('gate', 'w').close()) ran and was ended" in result["lateOutput"]
        output = await client.shell("echo [$y]", requestId="2")
        while output["type"] != "terminal_output":
            output = await client.answer_to("2")
        assert (output["output"], output["statePreserved"]) == ("[]\n", False)
        assert output["lateOutput"].startswith("kernelbridge: the shell ended when the session was closed at ")
        await client.send(type="execute_code", sessionId="s", code="1", requestId="3")
        last = await client.answer_to("3")
        while last["type"] != "execution_result":
            last = await client.answer_to("3")
        assert ("statePreserved" in last, "lateOutput" in last) == (False, False)
        assert not [frame for frame in client.frames if "closedAt" in frame]


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_a_client_of_the_documented_page_gets_its_answers_and_nothing_else(server: RunningServer) -> None:
    await leave_behind(server, command="sleep 1000")
    await until_closed(server)
    async with server.connect("u") as client:
        first = await client.run("print(1)", requestId="1")
        assert (first["type"], first["requestId"], first["output"]) == ("execution_result", "1", "1\n")
        assert first["statePreserved"] is False
        assert "a terminal command (: > gate; sleep 1000) ran and was ended" in first["lateOutput"]
        second = await client.run("print(2)", requestId="2")
        assert (second["requestId"], "statePreserved" in second, "lateOutput" in second) == ("2", False, False)
        shell = await client.shell("true", requestId="3")
        assert (shell["requestId"], shell["statePreserved"]) == ("3", False)


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_resume_of_a_closed_session_tells_how_it_was_closed(server: RunningServer) -> None:
    await leave_behind(server, cell="import time; time.sleep(1000)")
    await until_closed(server)
    async with server.connect("another") as stranger:
        assert (await stranger.ask(type="resume", sessionId="s"))["code"] == "unknown_session"
    async with server.connect("u") as client:
        frame = await client.ask(type="resume", sessionId="s", after=50, requestId="r")
        is_the_notice(frame)
        resumed = await client.answer_to("r")
        assert (resumed["type"], resumed["anew"]) == ("resumed", True)
        assert (await client.ask(type="resume", sessionId="never", requestId="r"))["code"] == "unknown_session"
    # Nobody has run anything since: whoever comes next is told as well.
    await until_closed(server)
    async with server.connect(STREAM) as client:
        is_the_notice(await client.run("1"))


async def test_it_is_told_by_the_next_server_too(tmp_path: Path, workspace_image: str) -> None:
    flags = {"runtime": "local", "port": "0", "data_dir": str(tmp_path / "data"), "image": workspace_image}
    async with aiohttp.ClientSession() as http:
        for step in range(2):
            settings = resolve({**flags, "stop_timeout": "0", "linger": "60s" if step == 0 else "0"}, {})
            async with running(settings, on_progress=lambda _line: None) as report:
                server = RunningServer(report.url, settings.data_dir, "local", http)
                async with server.connect("u" if step == 0 else STREAM) as client:
                    frame = await client.run("x = 1", requestId="r")
                    if step == 1:
                        assert (frame["status"], frame["whatRan"]) == ("closed", [])
                        assert "because the server stopped" in frame["detail"]
                        while frame["type"] != "execution_result":
                            frame = await client.answer_to("r")
                        assert frame["statePreserved"] is False
                        async with asyncio.timeout(60):  # a thread removes it
                            while list((tmp_path / "data" / "workspaces").glob("*/closed.json")):  # noqa: ASYNC110
                                await asyncio.sleep(0.01)


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_who_closes_a_session_on_purpose_is_not_told_but_the_others_are(server: RunningServer) -> None:
    async with server.connect("u") as one, server.connect("u") as other:
        await one.run("x = 1")
        await one.ask(type="close_session", sessionId="s")
        result = await one.run("1")
        assert ("statePreserved" in result, "lateOutput" in result) == (False, False)
        await other.run("x = 1")
        await one.ask(type="close_session", sessionId="s")
        result = await other.run("1")
        assert result["statePreserved"] is False
        assert "because another connection closed it" in result["lateOutput"]


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_nothing_is_told_where_nothing_was_lost(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await client.ask(type="save_file", sessionId="s", filename="f", content="x")
    await until_closed(server)
    await leave_behind(server)
    await until_closed(server)
    async with server.connect("u") as client:
        assert (await client.ask(type="close_session", sessionId="s", deleteFiles=True))["filesDeleted"]
        result = await client.run("1")
        assert ("statePreserved" in result, "lateOutput" in result) == (False, False)
    await until_closed(server)
    async with server.connect("u") as client:
        await client.shell("true", session="t")
    await until_closed(server, "t")
    async with server.connect("u") as client:
        assert "statePreserved" not in await client.run("1", session="t")  # there was no interpreter


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_how_long_a_session_lives_on_can_be_chosen(share_server: StartServer) -> None:
    server = await share_server(max_linger="10m")
    async with server.connect("u") as client:
        for wrong, says in ((601, "at most 600 seconds"), (-1, ""), ("60", ""), (True, "")):
            frame = await client.ask(type="open_session", sessionId="s", linger=wrong)
            assert (frame["code"], says in frame["error"]) == ("invalid_field", True), frame
        ready = await client.ask(type="open_session", sessionId="s", linger=600)
        assert (ready["linger"], ready["keepWhileRunning"]) == (600, False)
        await client.run("x = 1")
    async with server.connect("u") as client:
        assert (await client.run("print(x)"))["output"] == "1\n"
        info = await client.ask(type="session_info", sessionId="s")
        assert (info["linger"], info["keepWhileRunning"]) == (600, False)
        ready = await client.ask(type="open_session", sessionId="s", linger=0, keepWhileRunning=True)
        assert (ready["linger"], ready["keepWhileRunning"], ready["fresh"]) == (0, True, False)
    await until_closed(server)


@pytest.mark.parametrize("what", ["cell", "command"])
async def test_a_session_lives_on_while_something_runs_if_that_is_asked_for(server: RunningServer, what: str) -> None:
    async with server.connect("u") as client:
        await client.ask(type="open_session", sessionId="s", linger=0.001, keepWhileRunning=True)
        await client.shell("mkfifo begun go")
        if what == "cell":
            code = "open('begun', 'w').close(); open('go').close(); print('done')"
            await client.send(type="execute_code", sessionId="s", code=code, requestId="r")
            await client.shell("cat begun")
        else:
            await client.send(
                type="terminal_command", sessionId="s", command=": > begun; cat go; echo done", requestId="r"
            )
            await client.run("open('begun').close()")
    # Longer than its linger: the server has had its turns meanwhile.
    async with server.connect("u") as client:
        for _ in range(20):
            info = await client.ask(type="session_info", sessionId="s")
        assert (info["state"], info["connections"], info["keepWhileRunning"]) == ("active", 0, True)
        # While it is being resumed somebody is there, and its end is told.
        await client.send(type="resume", sessionId="s")
        await client.send(type="execute_code" if what == "command" else "terminal_command", sessionId="s", **go(what))
        result = await client.answer_to("r")
        assert (result["output"], result.get("cause")) == ("done\n", None)
        await client.send(type="ping", requestId="p")
        await client.answer_to("p")
    await until_closed(server)


def go(what: str) -> dict[str, Any]:
    return {"command": ": > go"} if what == "cell" else {"code": "open('go', 'w').close()"}


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_its_linger_begins_when_nothing_runs_any_more(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await client.ask(type="open_session", sessionId="s", linger=0, keepWhileRunning=True)
        await client.shell("mkfifo begun go")
        await client.send(
            type="execute_code", sessionId="s", code="open('begun', 'w').close(); open('go').close()", requestId="r"
        )
        await client.shell("cat begun")
    (gate,) = (server.data_dir / "workspaces").glob("*/files/go")
    async with server.connect("u") as client:
        assert (await client.ask(type="session_info", sessionId="s"))["state"] == "active"
    await asyncio.to_thread(lambda: gate.open("w").close())
    await until_closed(server)
    async with server.connect(STREAM) as client:
        frame = await client.run("1")
        assert (frame["status"], frame["whatRan"], frame["answersLost"]) == ("closed", [], 1)
        assert "1 answer that no client had received is lost" in frame["detail"]
