"""Memory that runs out: in the interpreter, in what a cell or a command starts, in the shell, in the background."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from kernelbridge.runtimes.docker import exit_status
from kernelbridge.runtimes.local import oom_notice
from tests.faults.conftest import status_with
from tests.integration.conftest import Client, RunningServer, StartServer

HOG = "python3 -c 'b = bytearray(800 << 20)'"
FILL = "text=x; while true; do text=$text$text; done"
"""It is the shell itself that needs the memory."""
POOL = """
import concurrent.futures as f
with f.ProcessPoolExecutor(1) as pool:
    pool.submit(eval, 'len(bytearray(800 << 20))').result()
"""


@pytest.fixture
async def server(start_server: StartServer) -> RunningServer:
    return await start_server(memory="192m")


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[Client]:
    async with server.connect("u") as client:
        await client.run("import subprocess; x = 1")
        await client.shell("y=kept")
        yield client


async def alive(client: Client) -> None:
    """Neither interpreter nor shell is another one, and neither says anything more of what was told."""
    after = await client.run("print(x)")
    assert (after["output"], "cause" in after, "lateOutput" in after) == ("1\n", False, False)
    command = await client.shell("echo $y")
    assert (command["output"], "cause" in command) == ("kept\n", False)


async def test_the_interpreter(client: Client) -> None:
    died = await client.run("b = bytearray(800 << 20)")
    assert (died["success"], died["cause"], died["statePreserved"]) == (False, "out_of_memory", False)
    assert died["error"].startswith("OutOfMemory: ")
    after = await client.run("print('x' in globals())")
    assert (after["output"], after["statePreserved"]) == ("False\n", False)
    assert after["lateOutput"] == "kernelbridge: the interpreter ended (out of memory); its variables are lost\n"
    assert (await client.shell("echo $y"))["output"] == "kept\n"


@pytest.mark.parametrize(
    ("code", "success"),
    [
        (f'print(subprocess.run("{HOG}", shell=True).returncode)', True),
        (f'subprocess.run("{HOG}", shell=True, check=True)', False),
        (f"!{HOG}", True),
        ("import os\nif os.fork() == 0:\n    b = bytearray(800 << 20)\nprint(os.wait()[1])", True),
        (POOL, False),
    ],
)
async def test_what_a_cell_started(client: Client, code: str, success: bool) -> None:  # noqa: FBT001 - pytest's
    """The cell goes on, and its own error stays; its result has the cause, and its interpreter its variables."""
    result = await client.run(code)
    assert (result["success"], result["cause"], result["statePreserved"]) == (success, "out_of_memory", True)
    assert success or "OutOfMemory" not in result["error"]
    await alive(client)


@pytest.mark.parametrize("command", [HOG, f"{HOG}; echo after", f"{HOG} | cat", f"(setsid {HOG})"])
async def test_what_a_command_started(client: Client, command: str) -> None:
    result = await client.shell(command)
    assert (result["cause"], result["statePreserved"]) == ("out_of_memory", True)
    assert "memory ran out" in result["hint"]
    await alive(client)


async def test_what_the_first_command_of_a_sandbox_started(
    server: RunningServer, lose_sandboxes: Callable[[RunningServer], Awaitable[object]]
) -> None:
    """The sandbox is started for it."""
    async with server.connect("u") as client:
        result = await client.shell(HOG)
        assert (result.get("cause"), result["exitCode"]) == ("out_of_memory", 137)
        await lose_sandboxes(server)
        result = await client.shell(HOG)
        assert (result.get("cause"), result["statePreserved"]) == ("out_of_memory", False)
        result = await client.shell("echo on")
        assert (result["output"], "cause" in result, "statePreserved" in result) == ("on\n", False, False)


async def test_the_shell_itself(client: Client) -> None:
    result = await client.shell("x=$(head -c 800m /dev/zero | tr '\\0' x)")
    assert (result["cause"], result["statePreserved"]) == ("out_of_memory", False)
    assert (await client.shell("echo $y-"))["output"] == "-\n"
    after = await client.run("print(x)")
    assert (after["output"], "cause" in after) == ("1\n", False)


async def test_the_shell_itself_where_its_end_is_reported_late(
    server: RunningServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reports it is stopped meanwhile, and the runtimes connect no kill with it any more.

    A shell can be late by itself: when it reads from a pipe whose writer waits for memory.
    """
    monkeypatch.setattr(oom_notice, "OOM_EXIT_SECONDS", 0.0)
    monkeypatch.setattr(exit_status, "OOM_EXIT_SECONDS", 0.0)
    keeper = int((await client.shell("echo $PPID"))["output"])
    await client.run(f"import os\nos.kill({keeper}, {signal.SIGSTOP:d})")
    async with server.connect("u") as watcher:
        await watcher.ask(type="open_session", sessionId="s")
        await client.send(type="terminal_command", sessionId="s", command=FILL, requestId="command")
        await status_with(watcher, "out_of_memory")
        code = f"os.kill({keeper}, {signal.SIGCONT:d})"
        await watcher.send(type="execute_code", sessionId="s", code=code, requestId="cell")
        assert "cause" not in await watcher.answer_to("cell")
    result = await client.answer_to("command")
    assert (result.get("cause"), result["exitCode"], result["statePreserved"]) == ("out_of_memory", 137, False)
    after = await client.run("print(x)")
    assert (after["output"], "cause" in after, "lateOutput" in after) == ("1\n", False, False)
    assert (await client.shell("kill -9 $$"))["cause"] == "shell_exited"


async def test_it_is_told_while_the_cell_goes_on(server: RunningServer, client: Client) -> None:
    """A pool waits for ever for its worker: who follows the session learns why."""
    async with server.connect("u") as watcher:
        await watcher.ask(type="open_session", sessionId="s")
        code = f'subprocess.run("{HOG}", shell=True)\ninput_never = open("gate").read()'
        await client.shell("mkfifo gate")
        await client.send(type="execute_code", sessionId="s", code=code, requestId="cell")
        status = await status_with(watcher, "out_of_memory")
        assert (status["status"], "memory ran out" in status["detail"]) == ("ready", True)
        (gate,) = server.data_dir.glob("workspaces/*/files/gate")
        await asyncio.to_thread(gate.write_text, "on")
        result = await client.answer_to("cell")
        assert (result["success"], result["cause"]) == (True, "out_of_memory")


async def test_a_job_in_the_background_is_told_by_the_next_result(server: RunningServer, client: Client) -> None:
    async with server.connect("u") as watcher:
        await watcher.ask(type="open_session", sessionId="s")
        await client.shell(f"(sleep 1; exec {HOG}) >/dev/null 2>&1 &")
        await status_with(watcher, "out_of_memory")
        await client.shell("wait")  # it is told before it is done
        after = await client.run("print(x)")
        assert (after["output"], "cause" in after) == ("1\n", False)
        assert after["lateOutput"] == "kernelbridge: the session's memory ran out, and a process in it was killed\n"
        await alive(client)


async def test_the_end_of_an_interpreter_is_not_told_to_a_command_beside_it(client: Client) -> None:
    await client.shell("mkfifo gate")
    await client.send(type="terminal_command", sessionId="s", command="cat gate", requestId="command")
    assert (await client.run("b = bytearray(800 << 20)"))["cause"] == "out_of_memory"
    code = "print('go', file=open('gate', 'w'))"
    await client.send(type="execute_code", sessionId="s", code=code, requestId="go")
    assert (await client.answer_to("go"))["success"]
    command = await client.answer_to("command")
    assert (command["output"], command["exitCode"], "cause" in command) == ("go\n", 0, False)


async def test_an_interpreter_or_shell_that_dies_of_something_else_later(client: Client) -> None:
    result = await client.run(f'subprocess.run("{HOG}", shell=True)\nimport os, time; time.sleep(3)')
    assert (result["cause"], result["statePreserved"]) == ("out_of_memory", True)
    command = await client.shell("kill -9 $$")
    assert (command["cause"], command["exitCode"]) == ("shell_exited", 137)
    died = await client.run("os.kill(os.getpid(), 9)")
    assert (died["cause"], died["signal"]) == ("kernel_died", "SIGKILL")
