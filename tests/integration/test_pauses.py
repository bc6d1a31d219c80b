"""Idle sessions are paused, any message resumes them, and nothing is lost on the way."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from tests.contract.driving import on_host, state
from tests.docker.faulty_engine import CuttableWire
from tests.integration.conftest import Client, Frame, RunningServer, StartServer

IDLE = "150ms"
LONG = 1.5
"""Seconds: so many times IDLE that whatever may be paused would have been."""


@asynccontextmanager
async def streaming(server: RunningServer, user: str = "u") -> AsyncIterator[Client]:
    """Connect as one who is told of every status, in its place among the answers."""
    async with server.connect(f"{user}&stream=true") as client:
        yield client


async def until(client: Client, wanted: Callable[[Frame], bool]) -> list[Frame]:
    """Give the frames that come, to the one that is wanted."""
    frames: list[Frame] = []
    while not frames or not wanted(frames[-1]):
        frames.append(await client.receive())
    return frames


async def paused(client: Client) -> None:
    await until(client, lambda frame: frame.get("status") == "paused")


def statuses(frames: list[Frame]) -> list[str]:
    return [frame["status"] for frame in frames if frame["type"] == "session_status"]


async def run(client: Client, code: str, **more: object) -> list[Frame]:
    """Run a cell; give everything that comes up to its result."""
    await client.send(type="execute_code", sessionId="s", code=code, **more)
    return await until(client, lambda frame: frame["type"] == "execution_result")


async def let_time_pass(server: RunningServer) -> None:
    """Wait as long as somebody else's cell runs."""
    async with server.connect("somebody else") as other:
        frame = await other.run(f"import time; time.sleep({LONG})", session="clock")
        assert frame["success"]


REQUESTS: dict[str, tuple[str, Frame]] = {
    "execute_code": ("execution_result", {"code": "print(x)"}),
    "terminal_command": ("terminal_output", {"command": "echo $y"}),
    "complete": ("complete_reply", {"code": "prin", "cursor": 4}),
    "inspect": ("inspect_reply", {"code": "print", "cursor": 5}),
    "is_complete": ("is_complete_reply", {"code": "if x:"}),
    "interrupt": ("interrupted", {"target": "execution"}),
    "open_session": ("session_ready", {}),
    "save_file": ("save_result", {"filename": "f", "content": "saved while it was paused"}),
    "resume": ("resumed", {}),
    "open_terminal": ("terminal_opened", {"terminalId": "t"}),
    "close_terminal": ("terminal_closed", {"terminalId": "t"}),
    "restart_kernel": ("kernel_restarted", {}),
}
"""Every kind of request, and its answer."""


async def test_any_message_resumes_a_paused_session_and_is_answered(share_server: StartServer) -> None:
    server = await share_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        await run(client, "x = 41")
        await client.send(type="terminal_command", sessionId="s", command="y=42")
        for request, (reply, fields) in REQUESTS.items():
            if request != "close_terminal":  # which is not paused
                await paused(client)
            if request == "resume":  # from here on, not what was told before
                fields["after"] = (await client.ask(type="session_info", sessionId="s"))["lastSeq"]
            await client.send(type=request, sessionId="s", **fields)
            frames = await until(client, lambda frame: frame["type"] == reply)  # noqa: B023 - used at once
            assert [frame for frame in frames if frame["type"] == "error"] == []
            if reply == "execution_result":
                assert frames[-1]["output"] == "41\n"
            elif reply == "terminal_output":
                assert frames[-1]["output"] == "42\n"
            if request not in {"save_file", "resume", "close_terminal"}:
                assert "resumed" in statuses(frames), request  # and before the answer
        await paused(client)
        frames = await run(client, "print('x' in globals(), open('f').read())")
        assert frames[-1]["output"] == "False saved while it was paused\n"


async def test_session_info_tells_of_a_pause_and_does_not_end_it(share_server: StartServer) -> None:
    server = await share_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        await run(client, "x = 1")
        await paused(client)
        for _ in range(2):
            info = await client.ask(type="session_info", sessionId="s")
            assert (info["state"], info["kernelState"]) == ("paused", "ready")
        (entry,) = (await client.ask(type="list_sessions"))["sessions"]
        assert entry["state"] == "paused"
        frames = await run(client, "print(x)")
        assert statuses(frames) == ["resumed"]
        assert frames[-1]["output"] == "1\n"
        assert (frames[-1].get("statePreserved"), frames[-1].get("cause")) == (None, None)


async def test_what_runs_is_not_idle(share_server: StartServer) -> None:
    server = await share_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        await run(client, "import time")
        await paused(client)
        assert statuses(await run(client, f"time.sleep({LONG})")) == ["resumed"]
        await paused(client)
        await client.send(type="terminal_command", sessionId="s", command=f"sleep {LONG}")
        assert statuses(await until(client, lambda frame: frame["type"] == "terminal_output")) == ["resumed"]
        await paused(client)


async def test_a_cell_that_waits_for_input_is_not_idle(share_server: StartServer) -> None:
    server = await share_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        await client.send(type="execute_code", sessionId="s", code="print(input())", allowStdin=True)
        await until(client, lambda frame: frame["type"] == "input_request")
        await let_time_pass(server)
        await client.send(type="input_reply", sessionId="s", value="given")
        frames = await until(client, lambda frame: frame["type"] == "execution_result")
        assert frames[-1]["output"].endswith("given\n")
        assert statuses(frames) == []
        await paused(client)


async def test_a_live_terminal_is_not_idle(share_server: StartServer) -> None:
    server = await share_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        async with server.connect("u") as viewer:
            await viewer.ask(type="open_terminal", sessionId="s", terminalId="t")
            await let_time_pass(server)
        await let_time_pass(server)  # it lives on, although nobody shows it
        frames = await run(client, "1")
        assert "paused" not in statuses(frames)
        await client.send(type="close_terminal", sessionId="s", terminalId="t")
        await paused(client)


async def test_what_runs_in_the_background_stands_still_and_goes_on(share_server: StartServer) -> None:
    server = await share_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        await client.send(
            type="terminal_command",
            sessionId="s",
            command="while :; do echo tick >>ticks; sleep 0.01; done & ",
        )
        await run(
            client,
            "import threading, time\n"
            "def talk():\n"
            "    time.sleep(0.01)\n"
            "    print('late')\n"
            "thread = threading.Timer(3600, talk)",
        )
        await paused(client)
        (ticks,) = (server.data_dir / "workspaces").glob("*/files/ticks")
        size = ticks.stat().st_size
        await let_time_pass(server)
        assert ticks.stat().st_size == size
        starts = f"while open('ticks').seek(0, 2) <= {size}: pass\nthreading.Thread(target=talk).start()"
        frames = await run(client, starts)  # on a busy machine it is not too late for this one
        await paused(client)
        frames += (last := await run(client, "time.sleep(0.1)"))
        assert "late\n" in [frame.get("text") for frame in frames] + [last[-1].get("lateOutput")]


async def test_no_message_is_lost_at_the_moment_of_a_pause(start_server: StartServer) -> None:
    server = await start_server(idle_timeout="1ms")
    async with server.connect("u") as client, server.connect("u") as second, streaming(server) as watcher:
        await client.run("x = 0")
        await client.shell("y=0")
        await watcher.ask(type="save_file", sessionId="s", filename="f", content="")
        for number in range(1, 101):
            await asyncio.sleep(number % 50 / 1000)  # waits for nothing: another moment of a pause each time
            await client.send(type="execute_code", sessionId="s", code="x += 1; print(x)", requestId="a")
            await second.send(type="terminal_command", sessionId="s", command="y=$((y + 1)); echo $y", requestId="b")
            await client.send(type="execute_code", sessionId="s", code="x", requestId="c")
            assert (await client.answer_to("a"))["output"] == f"{number}\n"
            assert (await client.answer_to("c"))["output"] == f"{number}\n"
            assert (await second.answer_to("b"))["output"] == f"{number}\n"
        await client.run("last = 1")
        await watcher.send(type="session_info", sessionId="s", requestId="last")
        told = statuses(await until(watcher, lambda frame: frame.get("requestId") == "last"))
        assert told.count("paused") > 2  # fewer, where a pause takes longer


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_without_isolation_it_is_all_the_same(start_server: StartServer) -> None:
    """There, and where control groups cannot be frozen, signals stop the processes, which these can see."""
    server = await start_server(idle_timeout=IDLE, isolation=False)
    mark = os.getpid()
    async with streaming(server) as client:
        await run(client, f"import subprocess; x = 41; child = subprocess.Popen(['sleep', '98751.{mark}'])")
        await client.send(type="terminal_command", sessionId="s", command=f"y=42; sleep 98752.{mark} &")
        for _ in range(3):
            await paused(client)
            children = [on_host(f"sleep\0{number}.{mark}") for number in (98751, 98752)]
            assert [[state(pid) for pid in pids] for pids in children] == [["T"], ["T"]]
            frames = await run(client, "print(x, child.poll())")
            assert (statuses(frames), frames[-1]["output"]) == (["resumed"], "41 None\n")
            await paused(client)
            await client.send(type="terminal_command", sessionId="s", command="echo $y; jobs")
            (*_, answer) = await until(client, lambda frame: frame["type"] == "terminal_output")
            first, job = answer["output"].splitlines()
            assert (first, "Running" in job) == ("42", True)


async def test_a_paused_session_can_be_closed(share_server: StartServer) -> None:
    server = await share_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        await run(client, "x = 1")
        await paused(client)
        await client.send(type="close_session", sessionId="s", deleteFiles=True)
        frames = await until(client, lambda frame: frame["type"] == "close_session_reply")
        assert frames[-1]["closed"]
        assert "resumed" not in statuses(frames)
        assert list((server.data_dir / "run").iterdir()) == []
        assert (await run(client, "print('x' in globals())"))[-1]["output"] == "False\n"


async def test_a_session_that_nobody_uses_ends_paused_or_not(start_server: StartServer) -> None:
    server = await start_server(idle_timeout=IDLE, linger="1s")
    async with streaming(server) as client:
        await run(client, "x = 1")
        await paused(client)
    async with server.connect("u") as again:
        assert (await again.run("print(x)"))["output"] == "1\n"
    async with streaming(server, "v") as client:  # as long as linger, and longer
        await client.run("import time; time.sleep(1.5)")
        while len(list((server.data_dir / "run").iterdir())) > 1:  # noqa: ASYNC110  the file system tells nobody
            await asyncio.sleep(0)


async def test_an_interpreter_that_is_killed_meanwhile_is_replaced(share_server: StartServer) -> None:
    server = await share_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        await run(client, "import ctypes; ctypes.CDLL(None).prctl(15, b'kb-victim'); x = 1")
        (pid,) = [pid for pid in on_host("ipykernel") if name(pid) == "kb-victim"]
        await paused(client)
        os.kill(pid, signal.SIGKILL)  # of another user in a container: needs root
        frame = (await run(client, "print('x' in globals())"))[-1]
        if frame.get("cause") == "kernel_died":  # it was sent before the death was noticed, and says so
            frame = (await run(client, "print('x' in globals())"))[-1]
        assert (frame["output"], frame["statePreserved"]) == ("False\n", False)


def name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


# -- behind the server ------------------------------------------------------------


@pytest.fixture
def engine() -> docker.DockerClient:
    return docker.from_env()


def container(engine: docker.DockerClient, server: RunningServer) -> Container:
    instance = (server.data_dir / "instance").read_text().strip()
    (found,) = engine.containers.list(filters={"label": f"kernelbridge.instance={instance}"})
    assert isinstance(found, Container)
    return found


def pause(found: Container) -> None:
    """Pause it, in several attempts: where processes get little time, runc gives up on freezing them all."""
    for left in reversed(range(10)):
        try:
            return found.pause()
        except docker.errors.APIError as exc:
            if not left or "unable to freeze" not in str(exc):
                raise
    return None


@pytest.mark.parametrize("runtime_name", ["docker"])
async def test_a_container_that_somebody_else_pauses_costs_its_session_nothing(
    start_server: StartServer, engine: docker.DockerClient
) -> None:
    server = await start_server(idle_timeout="0")
    async with streaming(server) as client:
        await run(client, "x = 1")
        found = container(engine, server)
        await asyncio.to_thread(pause, found)
        frames = await run(client, "print(x)")
        assert (statuses(frames), frames[-1]["output"]) == ([], "1\n")
        await client.send(type="execute_code", sessionId="s", code="import time; print(1)\nwhile True: 0")
        await until(client, lambda frame: frame["type"] == "execution_output")
        await asyncio.to_thread(pause, found)
        await client.send(type="interrupt", sessionId="s")
        frames = await until(client, lambda frame: frame["type"] == "execution_result")
        assert (statuses(frames), frames[-1]["cause"]) == ([], "interrupted")
    engine.close()


@pytest.mark.parametrize("runtime_name", ["docker"])
async def test_a_container_removed_while_it_is_paused(share_server: StartServer, engine: docker.DockerClient) -> None:
    server = await share_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        await run(client, "open('f', 'w').write('kept')")
        await paused(client)
        await asyncio.to_thread(container(engine, server).remove, force=True)
        await until(client, lambda frame: (frame.get("status"), frame.get("cause")) == ("closed", "sandbox_lost"))
        assert (await run(client, "print(open('f').read())"))[-1]["output"] == "kept\n"
    engine.close()


@pytest.mark.parametrize("runtime_name", ["docker"])
async def test_a_paused_session_is_resumed_while_the_engine_hangs(
    engine_wire: CuttableWire, start_server: StartServer
) -> None:
    server = await start_server(idle_timeout=IDLE)
    async with streaming(server) as client:
        await run(client, "x = 41")
        await client.send(type="terminal_command", sessionId="s", command="y=42")
        await paused(client)
        engine_wire.hold(b"")
        await client.send(type="terminal_command", sessionId="s", command="echo $y", requestId="1")
        frames = await until(client, lambda frame: frame["type"] == "terminal_output")
        assert (statuses(frames), frames[-1]["output"]) == (["resumed"], "42\n")
        await paused(client)
        assert (await run(client, "print(x)"))[-1]["output"] == "41\n"
        engine_wire.release()
