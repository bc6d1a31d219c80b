"""A sandbox destroyed behind the server: what ran in it ends with that cause, and the next command has another one."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from tests.faults.conftest import begin, status_with
from tests.integration.conftest import RunningServer

Lose = Callable[[RunningServer], Awaitable[None]]


async def test_what_ran_is_told_and_what_waits_runs_in_another(server: RunningServer, lose_sandboxes: Lose) -> None:
    async with server.connect("u") as watcher, server.connect("u") as client:
        await watcher.ask(type="open_session", sessionId="s")
        await client.run("x = 1; open('f', 'w').write('kept')")
        await begin(client, "import time; time.sleep(1000)")
        await client.shell("y=1; rm begun; mkfifo begun; cd /tmp")
        command = ": >~/begun; sleep 1000"
        await client.send(type="terminal_command", sessionId="s", command=command, requestId="command")
        await client.send(type="execute_code", sessionId="s", code="print('x' in globals())", requestId="queued")
        (begun,) = server.data_dir.glob("workspaces/*/files/begun")
        await asyncio.to_thread(begun.read_bytes)
        lost = time.monotonic()
        await lose_sandboxes(server)
        status = await status_with(watcher, "sandbox_lost")
        assert time.monotonic() - lost < 15  # at once; the next thing that looks would be a ping, after 30 s
        assert status["status"] == "closed"
        cell, ended = await client.answer_to("cell"), await client.answer_to("command")
        assert (cell["success"], cell["cause"], cell["statePreserved"]) == (False, "sandbox_lost", False)
        assert cell["error"].startswith("SandboxLost: ")
        assert (ended["cause"], ended["statePreserved"]) == ("sandbox_lost", False)
        queued = await client.answer_to("queued")
        assert (queued["output"], queued["statePreserved"]) == ("False\n", False)
        assert "the interpreter ended (its sandbox ended); its variables are lost" in queued["lateOutput"]
        assert (await client.shell('cat ~/f; echo; echo "$y"; pwd'))["output"] == "kept\n\n/workspace\n"


async def test_when_nothing_ran_the_next_cell_says_so(server: RunningServer, lose_sandboxes: Lose) -> None:
    async with server.connect("u") as watcher, server.connect("u") as client:
        await watcher.ask(type="open_session", sessionId="s")
        await client.run("x = 1; open('f', 'w').write('kept')")
        await lose_sandboxes(server)
        await status_with(watcher, "sandbox_lost")
        after = await client.run("print(open('f').read(), 'x' in globals())")
        assert (after["output"], after["statePreserved"]) == ("kept False\n", False)
        assert "its variables are lost" in after["lateOutput"]


async def test_what_is_sent_in_the_moment_of_its_end_runs_in_another(
    server: RunningServer, lose_sandboxes: Lose
) -> None:
    async with server.connect("u") as client:
        await client.shell("true")
        for _ in range(5):
            losing = asyncio.ensure_future(lose_sandboxes(server))
            while not losing.done():
                result = await client.shell("echo on")
                assert result["type"] == "terminal_output", result
                assert result.get("cause") in {None, "sandbox_lost"}
            result = await client.shell("echo on")
            assert (result["type"], result["output"]) == ("terminal_output", "on\n"), result
