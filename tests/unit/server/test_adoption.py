"""What a server leaves to the next one: both in this process, with sandboxes that are plain processes of this host."""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from kernelbridge.server.websocket.heartbeat import Patience
from tests.unit.server.conftest import Client, RunningServer, eventually, start_at

CELL = """
import pathlib, time
print("begun", flush=True)
while not pathlib.Path("go").exists(): time.sleep(0.01)
print("done")
"""
COMMAND = "echo begun; until [ -e go ]; do sleep 0.01; done; echo done"


@asynccontextmanager
async def server(data: Path, **flags: Any) -> AsyncIterator[RunningServer]:
    """Run a server that leaves its sandboxes to the next one."""
    async with AsyncExitStack() as stack:
        yield await start_at(stack, data, Patience(), {"keep_sandboxes": True, "linger": "600", **flags})


async def resume(client: Client, *request_ids: str) -> None:
    await client.send(type="resume", sessionId="s", after=0, requestIds=list(request_ids))


async def go(client: Client) -> None:
    await client.send(type="save_file", sessionId="s", filename="go", content="", requestId="go")


async def test_what_runs_is_answered_by_the_next_server(tmp_path: Path) -> None:
    async with server(tmp_path) as first, first.connect("u") as client:
        await client.send(type="execute_code", sessionId="s", code="kept = 42")
        await client.until(type="execution_result")
        await client.send(type="terminal_command", sessionId="s", command="cd /tmp; mine=7")
        await client.until(type="terminal_output")
        await client.send(type="open_terminal", sessionId="s", terminalId="t", rows=7, cols=50)
        await client.until(type="terminal_opened")
        await client.send(type="terminal_input", sessionId="s", terminalId="t", data="echo wo''rd\r")
        while "word" not in (await client.until(type="terminal_data"))["data"]:
            pass
        await client.send(type="execute_code", sessionId="s", code=CELL, requestId="cell", stream=True)
        await client.until(type="execution_output")
        await client.send(
            type="terminal_command", sessionId="s", command="cd -; " + COMMAND, requestId="command", stream=True
        )
        while "begun" not in (await client.until(type="terminal_chunk"))["text"]:
            pass
    async with server(tmp_path) as second, second.connect("u") as client:
        await resume(client, "cell", "command")
        await go(client)
        answers: dict[str | None, dict[str, Any]] = {}
        while len(answers) < 2:
            frame = await client.receive()
            client.frames.append(frame)
            if frame["type"] in {"execution_result", "terminal_output"}:
                answers[frame.get("requestId")] = frame
        assert (answers["cell"]["success"], answers["cell"]["output"]) == (True, "begun\ndone\n")
        assert answers["command"]["exitCode"] == 0
        assert answers["command"]["output"].endswith("begun\ndone\n")
        assert (await client.run("kept"))["results"][0]["data"]["text/plain"] == "42"
        assert (await client.shell("echo $mine"))["output"] == "7\n"
        await client.send(type="open_terminal", sessionId="s", terminalId="t")
        opened = await client.until(type="terminal_opened")
        assert opened["reattached"] is True
        assert "word" in (await client.until(type="terminal_data"))["data"]
        await client.send(type="close_session", sessionId="s", deleteFiles=True, requestId="end")
        await client.answer_to("end")
    async with server(tmp_path) as third, third.connect("u") as client:
        assert (await client.ask(type="list_sessions"))["sessions"] == []


async def test_what_ended_meanwhile_is_reported(tmp_path: Path) -> None:
    async with server(tmp_path) as first, first.connect("u") as client:
        await client.send(type="open_terminal", sessionId="s", terminalId="t")
        await client.until(type="terminal_opened")
        await client.send(type="execute_code", sessionId="s", code="import os; os.getppid()")
        await client.until(type="execution_result")
        await client.send(type="execute_code", sessionId="s", code=CELL, requestId="cell", stream=True)
        await client.until(type="execution_output")
        await client.send(type="terminal_command", sessionId="s", command=COMMAND, requestId="command", stream=True)
        while "begun" not in (await client.until(type="terminal_chunk"))["text"]:
            pass
        notes = list(tmp_path.rglob("sandboxes/*.json"))
    agent = json.loads(notes[0].read_text())["agent"]["pid"]
    os.kill(agent, signal.SIGTERM)

    async def gone() -> bool:
        return not Path(f"/proc/{agent}").exists() or "Z" in Path(f"/proc/{agent}/stat").read_text().split()[2]

    await eventually(gone)
    async with server(tmp_path) as second, second.connect("u") as client:
        await resume(client, "cell", "command")
        wanted = {"execution_result", "terminal_output", "terminal_closed"}
        found: dict[str, Any] = {}
        while wanted - found.keys():
            frame = await client.receive()
            found[frame["type"]] = frame
        cell, command, closed = found["execution_result"], found["terminal_output"], found["terminal_closed"]
        assert (cell["requestId"], cell["success"], cell["statePreserved"]) == ("cell", False, False)
        assert (command["requestId"], command["statePreserved"]) == ("command", False)
        assert (closed["terminalId"], closed["cause"]) == ("t", "sandbox_lost")


async def test_a_question_and_a_time_limit_outlive_the_server(tmp_path: Path) -> None:
    async with server(tmp_path) as first, first.connect("u") as client:
        await client.send(
            type="execute_code", sessionId="s", code="print(input('? '))", allowStdin=True, requestId="asks", timeout=60
        )
        await client.until(type="input_request")
    async with server(tmp_path) as second, second.connect("u") as client:
        await resume(client, "asks")
        question = await client.until(type="input_request")
        assert (question["prompt"], question["requestId"]) == ("? ", "asks")
        await client.send(type="input_reply", sessionId="s", inputId=question["inputId"], value="yes")
        answer = await client.until(type="execution_result")
        assert (answer["requestId"], answer["output"].splitlines()[-1]) == ("asks", "yes")
        await client.send(
            type="execute_code", sessionId="s", code="while True: pass", requestId="long", timeout=1.5, stream=True
        )
        await client.until(type="execution_started")
    async with server(tmp_path) as third, third.connect("u") as client:
        await resume(client, "long")
        assert (await client.until(type="execution_result"))["cause"] == "timeout"
