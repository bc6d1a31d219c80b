"""The wall clock jumps an hour forwards and back: nobody but the timestamps notices."""

import asyncio
import json
import time

import pytest

from tests.integration.conftest import PATIENCE, RunningServer, StartServer
from tests.integration.test_transfers import fetch, root

HOUR = 3600.0
UNTIL_TOLD = "import os, time\nwhile not os.path.exists('told'): time.sleep(0.05)\nprint(x)"


class JumpingClock:
    """The wall clock of this process, which is the server's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0.0
        seconds, nanoseconds = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: seconds() + self.offset)
        monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + int(self.offset * 1e9))


def counted(server: RunningServer) -> float:
    return float(json.loads((server.data_dir / "usage.json").read_text())["clock"])


async def two_looks(server: RunningServer) -> None:
    """Wait until the server has looked for what is unused, wholly after this moment."""
    async with asyncio.timeout(PATIENCE):
        for _ in range(2):
            before = counted(server)
            while counted(server) == before:  # noqa: ASYNC110  the file tells nobody
                await asyncio.sleep(0)


async def test_a_jump_of_an_hour_deletes_nothing_and_ends_nothing(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = JumpingClock(monkeypatch)
    server = await start_server(retain="25s", linger="10m", idle_timeout="10m", execution_timeout="10m")
    async with server.connect("u") as cells, server.connect("u") as shell, server.connect("u") as idle:
        for client in (cells, idle):
            await client.run("x = 41", session="idle" if client is idle else "s")
        await shell.shell("true")
        async with server.connect("u") as lingering:
            await lingering.run("y = 42", session="lingering")
        await cells.send(type="execute_code", sessionId="s", code=UNTIL_TOLD, timeout=600)
        await shell.send(
            type="terminal_command",
            sessionId="s",
            command="until [ -e told ]; do sleep 0.1; done; echo over",
            timeout=600,
        )
        for jump in (HOUR, -HOUR):
            assert (await fetch(server, "file", "PUT", session="stored", data=b"kept")).ok
            clock.offset = jump
            await two_looks(server)
            assert (root(server, session="stored") / "file").read_bytes() == b"kept"
        await idle.ask(type="save_file", sessionId="s", filename="told", content="")
        frame = await cells.receive()
        assert (frame["success"], frame["output"]) == (True, "41\n")
        assert 0 < frame["durationMs"] < HOUR * 500
        frame = await shell.receive()
        assert (frame["exitCode"], frame["output"]) == (0, "over\n")
        assert (await idle.run("print(x)", session="idle"))["output"] == "41\n"
        assert (await idle.run("print(y)", session="lingering"))["output"] == "42\n"
    assert (root(server, session="stored") / "file").read_bytes() == b"kept"
