"""What eats up a session's processes, memory, descriptors, time or disk: it is told, ended, and felt by nobody else."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.faults.conftest import begin, status_with
from tests.integration.conftest import Client, Frame, RunningServer, StartServer

PIDS = 64
TOLD = 30.0
"""Seconds within which a victim hears of it here; it takes five where nothing else runs."""
FELT = 1.0
"""Seconds that half of a neighbour's cells take at most; nearly all do where nothing else runs."""

FORKS = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
HOLDS = "for i in $(seq 400); do sleep 1000 & done"
ROOM_ENDED = "its limit of processes"


@dataclass
class Neighbour:
    """Another user, who runs a small cell again and again."""

    client: Client
    took: list[float] = field(default_factory=list)
    left: bool = False

    async def run(self) -> None:
        while not self.left:
            began = time.monotonic()
            result = await self.client.run("print(1)")
            assert (result["success"], result["output"]) == (True, "1\n")
            self.took.append(time.monotonic() - began)


@asynccontextmanager
async def beside(server: RunningServer) -> AsyncIterator[None]:
    """Have a neighbour who hardly feels what happens meanwhile."""
    async with server.connect("neighbour") as client:
        neighbour = Neighbour(client)
        await client.run("print(1)")
        running = asyncio.create_task(neighbour.run())
        try:
            yield
            while len(neighbour.took) < 5 and not running.done():
                await asyncio.wait({running}, timeout=0.1)
        finally:
            neighbour.left = True  # not cancelled: `wait_for` may miss that (before Python 3.12)
            await asyncio.wait({running})
        await running
        assert sorted(neighbour.took)[len(neighbour.took) // 2] <= FELT


@pytest.fixture
async def server(start_server: StartServer) -> RunningServer:
    return await start_server(memory="384m", pids=str(PIDS))


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[Client]:
    async with server.connect("u") as client:
        assert (await client.run("x = 1"))["success"]
        assert (await client.shell("y=kept"))["exitCode"] == 0
        yield client


async def alive(client: Client) -> None:
    """All is as it was: interpreter, shell, and room for processes."""
    assert (await client.run("import subprocess; print(x, subprocess.run('true').returncode)"))["output"] == "1 0\n"
    command = await client.shell("ls / >/dev/null && echo $y")
    assert (command["output"], "hint" in command) == ("kept\n", False)


async def end_jobs(client: Client) -> Frame:
    await client.send(type="interrupt", sessionId="s", target="terminal", jobs=True, requestId="end")
    while not (frame := await client.answer_to("end"))["done"]:
        pass
    return frame


async def timed(client: Client, command: str) -> Frame:
    """Run a command whose victim has to be told soon."""
    began = time.monotonic()
    result = await client.shell(command)
    assert time.monotonic() - began <= TOLD
    return result


async def test_a_command_that_forks_until_nothing_more_can_be_started(server: RunningServer, client: Client) -> None:
    """It is ended with all that it has started; what earlier commands left is not."""
    async with beside(server):
        await client.shell("sleep 1000 & echo $! >job")
        result = await timed(client, HOLDS)
        assert (result["cause"], result["statePreserved"]) == ("process_limit", True)
        assert ROOM_ENDED in result["hint"]
        await alive(client)
        assert (await client.shell("kill -0 $(cat job)"))["exitCode"] == 0


async def test_a_shell_that_complains_to_nobody_is_told_all_the_same(server: RunningServer, client: Client) -> None:
    """Not when bash gives up, which is after fifteen seconds and without a cause."""
    async with beside(server):
        began = time.monotonic()
        result = await timed(client, f"exec 2>/dev/null; {HOLDS}")
        print(f"told after {time.monotonic() - began:.1f} s")
        assert (result["cause"], result["statePreserved"]) == ("process_limit", True)
        assert ROOM_ENDED in result["hint"]
        await alive(client)


async def test_a_command_in_a_full_sandbox_that_waits_for_something_else_goes_on(
    server: RunningServer, client: Client
) -> None:
    async with server.connect("u") as watcher:
        await watcher.ask(type="open_session", sessionId="s")
        # Where this takes long, it is told of meanwhile, and not once more.
        await client.shell("mkfifo gate; for i in $(seq 400); do setsid -f sleep 1000 >/dev/null 2>&1 || break; done")
        await client.send(type="terminal_command", sessionId="s", command="read x <gate; echo got $x", requestId="c")
        await status_with(watcher, "process_limit")
        waited = await client.run("import time; time.sleep(6); open('gate', 'w').write('it\\n')", requestId="cell")
        frames = [waited, await client.receive()]
        assert {frame.get("output") for frame in frames} >= {"got it\n"}
        assert all(frame.get("cause") is None for frame in frames)


async def test_jobs_that_leave_no_room_can_be_ended(server: RunningServer, client: Client) -> None:
    async with beside(server):
        await client.shell("for i in $(seq 400); do setsid -f sleep 1000 >/dev/null 2>&1 || break; done; sleep 1000 &")
        result = await timed(client, "ls; ls")
        assert (result["cause"], ROOM_ENDED in result["hint"]) == ("process_limit", True)
        frame = await end_jobs(client)
        assert (frame["step"], frame["statePreserved"]) == ("process_group", True)
        await alive(client)


async def test_a_shell_that_cannot_be_had_is_told_why(server: RunningServer) -> None:
    async with server.connect("u") as client, beside(server):
        cell = await client.run("import subprocess\nwhile True: subprocess.Popen(['sleep', '1000'])")
        assert cell["error"].startswith("BlockingIOError: ")
        result = await timed(client, "ls")
        assert (result["type"], ROOM_ENDED in result.get("error", "")) == ("error", True), result
        await client.ask(type="restart_kernel", sessionId="s")
        assert (await client.shell("echo back"))["output"] == "back\n"


async def test_a_bomb_in_the_background(server: RunningServer, client: Client) -> None:
    async with beside(server), server.connect("u") as watcher:
        await watcher.ask(type="open_session", sessionId="s")
        await client.send(type="terminal_command", sessionId="s", command=f"python3 -c '{FORKS}' 2>/dev/null &")
        assert (await client.receive())["exitCode"] == 0
        await client.send(type="terminal_command", sessionId="s", command="ls; wait", requestId="ls")
        assert ROOM_ENDED in (await status_with(watcher, "process_limit"))["detail"]
        frame = await end_jobs(client)
        assert (frame["done"], frame["statePreserved"]) == (True, True)
        assert (await client.answer_to("ls"))["cause"] in {"process_limit", "interrupted"}
        await alive(client)


async def test_a_silent_bomb_in_a_command_is_told_and_can_be_interrupted(server: RunningServer, client: Client) -> None:
    async with beside(server), server.connect("u") as watcher:
        await watcher.ask(type="open_session", sessionId="s")
        await client.send(type="terminal_command", sessionId="s", command=f"python3 -c '{FORKS}'", requestId="bomb")
        assert ROOM_ENDED in (await status_with(watcher, "process_limit"))["detail"]
        await client.send(type="interrupt", sessionId="s", target="terminal", requestId="stop")
        ended = await client.answer_to("bomb")
        assert ended.get("cause") == "interrupted", ended
        assert (await client.answer_to("stop"))["type"] == "interrupted"
        client.frames.clear()  # further steps
        await alive(client)


async def test_a_bomb_in_a_cell(server: RunningServer, client: Client) -> None:
    """The interpreter is lost with it; the shell is not, and neither is the sandbox."""
    async with beside(server), server.connect("u") as watcher:
        await watcher.ask(type="open_session", sessionId="s")
        await begin(client, FORKS)
        assert ROOM_ENDED in (await status_with(watcher, "process_limit"))["detail"]
        await client.send(type="restart_kernel", sessionId="s", requestId="restart")
        assert (await client.answer_to("cell"))["cause"] == "kernel_restarted"
        assert (await client.answer_to("restart"))["type"] == "kernel_restarted"
        await client.run("x = 1")
        await alive(client)


async def test_threads(server: RunningServer, client: Client) -> None:
    code = "import threading\nwhile True: threading.Thread(target=threading.Event().wait, daemon=True).start()"
    async with beside(server):
        assert (await client.run(code))["error"] == "RuntimeError: can't start new thread"
        result = await timed(client, "ls; ls")
        assert (result["cause"], "restart_kernel" in result["hint"]) == ("process_limit", True)
        assert (await client.ask(type="restart_kernel", sessionId="s"))["type"] == "kernel_restarted"
        await client.run("x = 1")
        await alive(client)
        failed = await client.shell(f"python3 -c '{code.replace(chr(10), ';', 1)}'".replace(";while", "\nwhile"))
        assert (failed["exitCode"] != 0, ROOM_ENDED in failed.get("hint", "")) == (True, True)


async def test_memory(server: RunningServer, client: Client) -> None:
    async with beside(server):
        result = await client.shell("python3 -c 'b = bytearray(800 << 20)'")
        assert (result["cause"], result["statePreserved"]) == ("out_of_memory", True)
        await alive(client)
        assert (await client.run("b = bytearray(800 << 20)"))["cause"] == "out_of_memory"


async def test_a_full_tmp(server: RunningServer, client: Client) -> None:
    async with beside(server):
        result = await client.shell("cat /dev/zero >/tmp/full")
        assert (result["exitCode"], "No space left on device" in result["output"]) == (1, True)
        cell = await client.run("open('/tmp/more', 'wb').write(bytes(1 << 20))")
        assert cell["error"].startswith("OSError: [Errno 28]")
        await client.shell("rm /tmp/full")
        await alive(client)


async def test_descriptors(server: RunningServer, client: Client) -> None:
    code = "files = []\nwhile True: files.append(open('/dev/null'))"
    async with beside(server):
        assert (await client.run(code))["error"].startswith("OSError: [Errno 24]")
        assert (await client.run("files.clear()"))["success"]
        failed = await client.shell("python3 -c \"\nfiles = []\nwhile True: files.append(open('/dev/null'))\"")
        assert (failed["exitCode"], "Too many open files" in failed["output"]) == (1, True)
        await alive(client)


BUSY = "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait"


async def test_processor_time(server: RunningServer, client: Client) -> None:
    async with beside(server):
        result = await client.shell(BUSY, timeout=3)
        assert (result["cause"], result["statePreserved"]) == ("timeout", True)
        cell = await client.run(f"import subprocess\nsubprocess.run({BUSY!r}, shell=True)", timeout=3)
        assert cell["cause"] == "timeout"
        # What it has put into the background lives on, as after any cell; not longer than the interpreter.
        await client.ask(type="restart_kernel", sessionId="s")
        assert (await client.shell("ps -ef | grep -c '[w]hile :; do :; done'"))["output"] == "0\n"
        await client.run("x = 1")
        await alive(client)


async def test_output(start_server: StartServer) -> None:
    server = await start_server(max_output="1m")
    async with server.connect("u") as client, beside(server):
        await client.run("x = 1")
        await client.shell("y=kept")
        result = await client.shell("yes", timeout=8)
        assert (result["cause"], "truncated" in result) == ("timeout", True)
        cell = await client.run("while True: print('y' * 100)", timeout=3)
        assert (cell["cause"], "truncated" in cell) == ("timeout", True)
        await alive(client)


async def test_an_interpreter_that_has_no_room_to_start(server: RunningServer) -> None:
    async with server.connect("u") as client:
        await client.shell("for i in $(seq 400); do setsid -f sleep 1000 >/dev/null 2>&1 || break; done")
        refused = await client.run("print(1)")
        # It may not have room for its first process, or for its threads.
        assert refused.get("code") in {"kernel_failed", "sandbox_failed"}, refused
        assert ROOM_ENDED in refused["error"]
        await end_jobs(client)
        assert (await client.run("print(1)"))["output"] == "1\n"


async def test_an_interpreter_that_has_no_memory_to_start(start_server: StartServer) -> None:
    server = await start_server(memory="140m")
    async with server.connect("u") as client:
        await client.shell("head -c 118M /dev/zero >/tmp/full")
        refused = await client.run("print(1)")
        assert (refused["type"], refused["code"]) == ("error", "kernel_failed")
        assert "memory was exhausted" in refused["error"]
        await client.shell("rm /tmp/full")
        assert (await client.run("print(1)"))["output"] == "1\n"
