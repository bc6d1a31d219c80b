"""Each example of the documented page, compared field by field, on both runtimes."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.docker.faulty_engine import CuttableWire
from tests.integration.conftest import Client, RunningServer, StartServer
from tests.unit.protocol.test_codec import MALFORMED

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def documented(frame: dict[str, Any], *fields: str) -> dict[str, Any]:
    """Give the documented fields of a frame; the timestamp is checked and left out."""
    if "timestamp" in frame:
        assert TIMESTAMP.fullmatch(frame["timestamp"])
        assert abs(datetime.fromisoformat(frame["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)
    return {name: frame[name] for name in fields}


async def test_connection_confirmation(server: RunningServer) -> None:
    async with server.connect("123") as client:
        assert documented(client.connected, "type", "userId", "protocolVersion") == {
            "type": "connected",
            "userId": "123",
            "protocolVersion": "1.0",
        }
        assert client.connected["connectionId"]
        # Nothing follows until asked: the answer to a ping is the next frame.
        assert (await client.ask(type="ping", requestId="p"))["type"] == "pong"
    async with server.connect() as client:
        assert client.connected["userId"] is None


async def test_message_format_example(client: Client) -> None:
    frame = await client.ask(
        type="execute_code", sessionId="workspace-uuid", code="print('Hello World')", filename="main.py"
    )
    assert documented(frame, "type", "success", "output", "error", "sessionId") == {
        "type": "execution_result",
        "success": True,
        "output": "Hello World\n",
        "error": None,
        "sessionId": "workspace-uuid",
    }


async def test_execute_code_example(client: Client) -> None:
    frame = await client.ask(
        type="execute_code",
        sessionId="workspace-uuid",
        code="import numpy as np\nprint(np.array([1,2,3]))",
        filename="script.py",
    )
    assert documented(frame, "type", "success", "output", "error", "sessionId") == {
        "type": "execution_result",
        "success": True,
        "output": "[1 2 3]\n",
        "error": None,
        "sessionId": "workspace-uuid",
    }


async def test_file_save_and_terminal_command_examples(client: Client) -> None:
    frame = await client.ask(
        type="save_file", sessionId="workspace-uuid", filename="main.py", content="print('Updated content')"
    )
    assert documented(frame, "type", "success", "message", "filename", "sessionId") == {
        "type": "save_result",
        "success": True,
        "message": "File saved successfully",
        "filename": "main.py",
        "sessionId": "workspace-uuid",
    }
    frame = await client.ask(type="terminal_command", sessionId="workspace-uuid", command="ls -la")
    assert documented(frame, "type", "sessionId") == {"type": "terminal_output", "sessionId": "workspace-uuid"}
    lines = frame["output"].splitlines()
    assert re.fullmatch(r"total \d+", lines[0])
    assert re.fullmatch(r"drwx\S* +\d+ \S+ +\S+ +\d+ \w+ +\d+ +\S+ \.", lines[1])
    assert re.fullmatch(r"drwx\S* +\d+ \S+ +\S+ +\d+ \w+ +\d+ +\S+ \.\.", lines[2])
    assert any(re.fullmatch(r"-rw-r--r-- +1 \S+ +\S+ +24 \w+ +\d+ +\S+ main\.py", line) for line in lines)
    assert frame["output"].endswith("\n")
    assert "\r" not in frame["output"]
    frame = await client.shell("python3 main.py", session="workspace-uuid")
    assert frame["output"] == "Updated content\n"


async def test_execution_error_example(client: Client) -> None:
    frame = await client.ask(type="execute_code", sessionId="workspace-uuid", code="a b", filename="main.py")
    assert documented(frame, "type", "success", "output", "error", "sessionId") == {
        "type": "execution_result",
        "success": False,
        "output": "",
        "error": "SyntaxError: invalid syntax",
        "sessionId": "workspace-uuid",
    }


@pytest.mark.parametrize("runtime_name", ["docker"])
async def test_system_error_example(engine_wire: CuttableWire, start_server: StartServer) -> None:
    server = await start_server()
    async with server.connect("123") as client:
        await engine_wire.cut()
        frame = await client.ask(type="execute_code", sessionId="workspace-uuid", code="1", filename="main.py")
        assert documented(frame, "type", "sessionId") == {"type": "error", "sessionId": "workspace-uuid"}
        assert "Docker" in frame["message"]
        assert "start the Docker engine" in frame["error"]
        assert (frame["code"], frame["retryable"]) == ("runtime_unavailable", True)
        await engine_wire.join()
        assert (await client.run("print(1)", session="workspace-uuid"))["output"] == "1\n"


async def test_a_system_error_of_either_runtime_has_the_documented_fields(client: Client) -> None:
    frame = await client.ask(type="terminal_command", sessionId="not/a/session", command="ls")
    assert documented(frame, "type", "sessionId") == {"type": "error", "sessionId": "not/a/session"}
    assert "sessionId" in frame["message"]
    assert frame["error"]


async def test_usage_example(server: RunningServer) -> None:
    """Both requests are sent at once; each gets its documented answer."""
    async with server.connect("123") as client:
        await client.send(
            type="execute_code",
            sessionId="my-workspace-uuid",
            code='print("Hello from Python")',
            filename="main.py",
        )
        await client.send(type="terminal_command", sessionId="my-workspace-uuid", command="pip install numpy")
        answers = {frame["type"]: frame for frame in [await client.receive(), await client.receive()]}
    assert set(answers) == {"execution_result", "terminal_output"}
    assert answers["execution_result"]["output"] == "Hello from Python\n"
    assert answers["execution_result"]["success"] is True
    # Without a network only what is installed already can be had, and numpy is.
    assert "numpy" in answers["terminal_output"]["output"]


async def test_session_management(server: RunningServer) -> None:
    """Isolation between users, one session for several connections of a user, files outlive the container."""
    async with server.connect("alice") as alice, server.connect("bob") as bob, server.connect("alice") as again:
        assert (await alice.run("x = 'alice'; open('f', 'w').write(x); print(x)"))["output"] == "alice\n"
        stranger = await bob.run("import os; print('x' in globals(), os.path.exists('f'))")
        assert stranger["output"] == "False False\n"
        assert (await again.run("print(x)"))["output"] == "alice\n"
    async with server.connect("alice") as alice:
        back = await alice.run("print('x' in globals(), open('f').read())")
        assert back["output"] == "False alice\n"


async def test_malformed_frames_are_answered_and_leave_the_connection_open(client: Client) -> None:
    frames = [(text, code) for text, code, _field in MALFORMED if text.isascii()]
    assert len(frames) >= 30
    for text, code in frames:
        await client.ws.send_str(text)
        frame = await client.receive()
        assert (frame["type"], frame["code"], frame["retryable"]) == ("error", code, False)
        assert frame["message"]
        assert frame["error"]
    await client.ws.send_bytes(b'{"type":"ping"}')
    assert (await client.receive())["code"] == "binary_frame"
    assert (await client.ask(type="ping", requestId=""))["requestId"] == ""


async def test_an_oversized_frame_is_explained_and_closes_with_1009(server: RunningServer) -> None:
    async with server.connect() as client:
        await client.ws.send_str('{"type":"ping","x":"' + "a" * (16 << 20) + '"}')
        assert (await client.receive())["code"] == "frame_too_large"
        closing = await asyncio.wait_for(client.ws.receive(), 30)
        assert closing.data == 1009
