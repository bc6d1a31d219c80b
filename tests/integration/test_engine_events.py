"""What the engine does for a session that is ready: nothing, whatever is run in it."""

import asyncio
import contextlib
import time

import docker
import pytest

from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL
from tests.integration.conftest import RunningServer, StartServer
from tests.integration.emulator import Person

pytestmark = pytest.mark.parametrize("runtime_name", ["docker"])


def actions(server: RunningServer, since: float) -> list[str]:
    """What the engine has done to the server's containers since a time."""
    instance = (server.data_dir / "instance").read_text(encoding="ascii").strip()
    filters = {"type": "container", "label": f"{INSTANCE_LABEL}={instance}"}
    with contextlib.closing(docker.from_env()) as client:
        span = {"since": f"{since:.9f}", "until": f"{time.time():.9f}"}
        return [event["Action"] for event in client.api.events(filters=filters, decode=True, **span)]  # type: ignore[call-overload]  # the engine takes fractions


async def test_nothing_that_runs_in_a_session_goes_through_the_engine(start_server: StartServer) -> None:
    server = await start_server()  # nobody else's containers
    async with server.connect("u") as client:
        began = time.time()
        await client.run("x = 41")
        ready = time.time()
        assert {"create", "start"} <= set(await asyncio.to_thread(actions, server, began))
        assert (await client.run("import subprocess; print(subprocess.run('true').returncode)"))["output"] == "0\n"
        assert (await client.shell("cd /tmp; sleep 1000 & echo $((6 * 7))"))["output"].endswith("42\n")
        await client.send(type="terminal_command", sessionId="s", command="sleep 1000", requestId="command")
        await client.send(type="interrupt", sessionId="s", target="terminal", jobs=True, requestId="jobs")
        assert (await client.answer_to("command"))["cause"] == "interrupted"
        while not (await client.answer_to("jobs"))["done"]:
            pass
        person = await Person.open(client, requestId="open")
        await person.type("echo $((60 + 6))\r")
        await person.until("66")
        await person.resize(30, 100)
        await person.send("close_terminal")
        await person.until_closed()
        await client.send(type="execute_code", sessionId="s", code="import time; time.sleep(1000)", requestId="cell")
        await client.send(type="interrupt", sessionId="s", requestId="stop")
        assert (await client.answer_to("cell"))["cause"] == "interrupted"
        while not (await client.answer_to("stop"))["done"]:
            pass
        await client.send(type="restart_kernel", sessionId="s", requestId="restart")
        assert (await client.answer_to("restart"))["type"] == "kernel_restarted"
        assert (await client.run("print(1)", requestId="last"))["output"] == "1\n"
        assert await asyncio.to_thread(actions, server, ready) == []
