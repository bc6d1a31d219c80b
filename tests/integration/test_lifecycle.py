"""Lazy start, linger, what persists, what an orderly stop leaves: nothing."""

import asyncio
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import docker
import pytest
from docker.models.containers import Container
from yarl import URL

from tests.integration.conftest import RunningServer, StartServer
from tests.integration.driving import HANDSHAKE


@contextmanager
def made_by(server_data: Path) -> Iterator[list[Container]]:
    """Ask the engine itself: its command line is a package of its own (Debian 13's docker.io has none)."""
    instance = (server_data / "instance").read_text().strip()
    client = docker.from_env()
    try:
        yield client.containers.list(all=True, filters={"label": f"kernelbridge.instance={instance}"})
    finally:
        client.close()


def containers(server_data: Path) -> list[str]:
    with made_by(server_data) as found:
        return [str(container.name) for container in found]


def remove_containers(server_data: Path) -> None:
    with made_by(server_data) as found:
        for container in found:
            container.remove(force=True)


def running(server: RunningServer) -> list[str]:
    """What runs for this server: one shared directory for each sandbox, on every runtime."""
    found = sorted(path.name for path in (server.data_dir / "run").iterdir())
    if server.runtime == "docker":
        assert len(containers(server.data_dir)) == len(found)
    return found


async def test_a_container_starts_with_the_first_command_not_before(server: RunningServer) -> None:
    async with server.connect() as client:
        await client.ask(type="ping")
        await client.ask(type="save_file", sessionId="s", filename="f", content="x")
        assert running(server) == []
        assert (await client.shell("cat f"))["output"] == "x"
        assert len(running(server)) == 1


async def test_a_client_that_returns_within_linger_finds_its_interpreter(start_server: StartServer) -> None:
    server = await start_server(linger="60s")
    async with server.connect("u") as client:
        await client.run("x = 41")
    async with server.connect("u") as client:
        assert (await client.run("print(x + 1)"))["output"] == "42\n"


async def test_a_client_that_returns_during_the_close_gets_a_new_sandbox(server: RunningServer) -> None:
    for step in range(3):
        async with server.connect("u") as client:
            frame = await client.run(
                f"open('log', 'a').write('{step}'); print(open('log').read(), 'x' in globals()); x = 1"
            )
            assert frame["output"] == f"{'012'[: step + 1]} False\n"


async def test_a_session_lives_as_long_as_one_of_its_connections(server: RunningServer) -> None:
    async with server.connect("u") as first:
        async with server.connect("u") as second:
            await second.run("x = 7")
            await first.run("pass")
        assert (await first.run("print(x)"))["output"] == "7\n"


async def test_answers_go_to_who_asked(server: RunningServer) -> None:
    async with server.connect("u") as first, server.connect("u") as second:
        await first.run("x = 0")
        for number in range(20):
            await first.send(type="execute_code", sessionId="s", code="x += 1", requestId=f"a{number}")
            await second.send(type="execute_code", sessionId="s", code="x += 1", requestId=f"b{number}")
        assert [(await first.receive())["requestId"] for _ in range(20)] == [f"a{n}" for n in range(20)]
        assert [(await second.receive())["requestId"] for _ in range(20)] == [f"b{n}" for n in range(20)]
        assert (await second.run("print(x)"))["output"] == "40\n"


async def test_a_client_that_leaves_during_the_start_leaves_nothing(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await client.send(type="execute_code", sessionId="s", code="pass")
        await client.send(type="terminal_command", sessionId="s", command="sleep 60")
    # The next sandbox of the session starts only when the first is gone.
    async with server.connect("u") as client:
        assert (await client.run("print(1)"))["output"] == "1\n"
        assert len(running(server)) == 1


async def test_a_sandbox_removed_behind_the_server_is_replaced(runtime_name: str, server: RunningServer) -> None:
    async with server.connect("u") as client:
        await client.run("x = 1; open('f', 'w').write('kept')")
        await client.shell("cd /tmp")
        if runtime_name == "docker":
            await asyncio.to_thread(remove_containers, server.data_dir)
        else:
            await client.send(type="terminal_command", sessionId="s", command="kill -9 -1", requestId="killer")
            await client.answer_to("killer")
        frame = await client.run("print(open('f').read(), 'x' in globals())")
        # It may have been sent before the loss was noticed. A local sandbox outlives the end of its processes.
        if frame.get("cause") in {"sandbox_lost", "kernel_died"}:
            frame = await client.run("print(open('f').read(), 'x' in globals())")
        assert (frame["output"], frame["statePreserved"]) == ("kept False\n", False)
        assert (await client.shell("cat ~/f"))["output"] == "kept"


async def test_hosts_and_origins_are_checked_before_the_upgrade(server: RunningServer) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with server.connect(headers=headers):
                pass
        assert caught.value.status == 403
    async with server.connect(origin="http://localhost:3000") as client:
        assert client.connected["type"] == "connected"


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_without_isolation_every_client_is_warned_and_all_works(start_server: StartServer) -> None:
    server = await start_server(isolation=False)
    async with server.connect("u") as client:
        assert "rights" in client.connected["warning"]
        assert (await client.run("print(6 * 7)"))["output"] == "42\n"
        assert (await client.shell("echo here"))["output"] == "here\n"
        saved = await client.ask(type="save_file", sessionId="s", filename="f", content="x")
        assert saved["success"]
        assert (await client.run("print(open('f').read())"))["output"] == "x\n"


async def test_http_routes(server: RunningServer) -> None:
    base = server.url.replace("ws://", "http://").removesuffix("/ws")
    async with server.http.get(base + "/healthz") as response:
        assert (response.status, (await response.json())["status"]) == (200, "ok")
    async with server.http.get(base + "/api/schema") as response:
        assert "ExecuteCode" in (await response.json())["$defs"]
    async with server.http.get(base + "/ws") as response:
        assert response.status == 426
        assert "ws://" in await response.text()
    async with server.http.get(base + "/healthz", headers={"Host": "evil.example"}) as response:
        assert response.status == 403
    for wrong in ("x" * 300, "a&user_id=b", "%ff", "%00"):
        async with server.http.get(URL(f"{base}/ws?user_id={wrong}", encoded=True), headers=HANDSHAKE) as response:
            assert (response.status, "user_id" in await response.text()) == (400, True), wrong


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> set[int]:
    """Every descendant of a process, host view."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                found.add(child)
                todo.append(child)
    return found


def ended(pid: int) -> bool:
    """Whether a process has ended, or ends now: init may reap it a moment later than its killer did its part."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_an_orderly_stop_leaves_nothing_behind(
    runtime_name: str, tmp_path: Path, workspace_image: str, stop: signal.Signals
) -> None:
    port, data = free_port(), tmp_path / "data"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kernelbridge", "serve", "--runtime", runtime_name, "--port", str(port)),
        *("--data-dir", str(data), "--image", workspace_image),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if not key.startswith("KERNELBRIDGE_")},
    )
    assert process.stdout is not None
    screen = b""
    while f"ws://127.0.0.1:{port}/ws".encode() not in screen:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line, (screen, await process.communicate())
        screen += line
    async with aiohttp.ClientSession() as http, http.ws_connect(f"ws://127.0.0.1:{port}/ws?user_id=u") as ws:
        await ws.receive_json()
        await ws.send_json({"type": "execute_code", "sessionId": "s", "code": "print('up')"})
        assert (await ws.receive_json(timeout=60))["output"] == "up\n"
        await ws.send_json({"type": "execute_code", "sessionId": "s", "code": "import time; time.sleep(600)"})
        await ws.send_json({"type": "terminal_command", "sessionId": "s", "command": "sleep 600 & echo started"})
        assert (await ws.receive_json(timeout=60))["output"].endswith("started\n")
        descendants = children(process.pid)
        process.send_signal(stop)
        closing = await asyncio.wait_for(ws.receive(), 60)
        assert closing.type is aiohttp.WSMsgType.TEXT, closing
        frame = json.loads(closing.data)
        assert (frame["type"], frame["cause"]) == ("execution_result", "session_closed")
        closing = await asyncio.wait_for(ws.receive(), 60)
        assert closing.data == 1001
    _out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err
    assert containers(data) == []
    assert list((data / "run").iterdir()) == []
    assert all([await asyncio.to_thread(ended, pid) for pid in descendants])
    assert list((data / "workspaces").glob("*/files"))
    assert b"Traceback" not in err
