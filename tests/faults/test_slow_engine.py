"""An engine that answers, but after seconds: what it takes long to do is done or refused, and nobody else waits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import pytest

from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL
from tests.faults.conftest import status_with
from tests.faults.slow_engine import LateAnswers, late_answers
from tests.faults.test_engine import SETTLED, TOLD, steady_loop
from tests.faults.test_memory import FILL, HOG
from tests.integration.conftest import RunningServer, StartServer

pytestmark = pytest.mark.parametrize("runtime_name", ["docker"])

SLOW, TOO_SLOW = 1.5, 9.0
"""Seconds for an answer: one that is waited for, and one that is not."""


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LateAnswers]:
    async with late_answers(tmp_path / "engine.sock") as engine:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{engine.path}")
        yield engine


@pytest.fixture
async def slow_server(engine: LateAnswers, start_server: StartServer) -> AsyncIterator[RunningServer]:
    """A server whose engine is quick until a test slows it down, and in the end again."""
    server = await start_server(data_dir=str(engine.path.parent / "data"))
    yield server
    engine.delay(0)


def containers(server: RunningServer) -> int:
    """Count the server's containers; one list and no more, for some may be about to vanish."""
    instance = (server.data_dir / "instance").read_text(encoding="ascii").strip()
    with contextlib.closing(docker.from_env()) as client:
        return len(client.api.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"}))


async def nothing_left(server: RunningServer, *, but: int = 0) -> None:
    """Wait until there are no more containers and shared directories than these."""
    async with asyncio.timeout(SETTLED):
        while await asyncio.to_thread(containers, server) != but:
            pass
        while len(list((server.data_dir / "run").iterdir())) != but:  # noqa: ASYNC110  the file system tells nobody
            await asyncio.sleep(0)


async def test_starts_take_longer_and_nothing_else_does(slow_server: RunningServer, engine: LateAnswers) -> None:
    server = slow_server
    async with server.connect("u") as client, server.connect("u") as other:
        await client.run("x = 41")
        await client.shell("cd /tmp")
        engine.delay(SLOW)
        async with steady_loop(SLOW / 2):
            starting = [
                asyncio.create_task(other.run("print(6 * 7)", session="new")),
                asyncio.create_task(client.ask(type="ping")),
            ]
            assert (await starting[1])["type"] == "pong"
            # What runs needs no answer of the engine's.
            async with asyncio.timeout(SLOW):
                assert (await client.run("print(x)"))["output"] == "41\n"
                assert (await client.shell("pwd"))["output"] == "/tmp\n"
                assert (await client.ask(type="save_file", sessionId="s", filename="f", content=""))["success"]
            assert not starting[0].done()
            assert (await starting[0])["output"] == "42\n"
            assert (await other.shell("echo ok", session="new"))["output"] == "ok\n"
            await client.send(
                type="execute_code", sessionId="s", code="import time; time.sleep(1000)", requestId="cell"
            )
            await client.ask(type="interrupt", sessionId="s", requestId="stop")
            assert (await client.answer_to("cell"))["cause"] == "interrupted"
            assert (await other.ask(type="close_session", sessionId="new"))["closed"]
            assert (await other.run("print(7)", session="new"))["output"] == "7\n"
        assert len(engine.late) > 6
        engine.delay(0)
        await nothing_left(server, but=2)
    await nothing_left(server)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(rb"", id="everything"),
        pytest.param(rb"POST /containers/create", id="create"),
        pytest.param(rb"POST /containers/\w+/start", id="start"),
    ],
)
async def test_what_takes_too_long_is_refused_in_time_and_taken_back(
    slow_server: RunningServer, engine: LateAnswers, request_: bytes
) -> None:
    server = slow_server
    async with server.connect("u") as client, server.connect("u") as other:
        await client.run("x = 41")
        engine.delay(TOO_SLOW, request_)
        async with steady_loop(TOO_SLOW / 4):
            async with asyncio.timeout(TOLD):
                frame = await other.run("1", session="new")
            assert (frame["type"], frame["code"], frame["retryable"]) == ("error", "runtime_unavailable", True)
            assert "took longer than 8 s" in frame["error"]
            assert (await client.run("print(x)"))["output"] == "41\n"
        assert engine.late
        engine.delay(0)
        await other.ask(type="close_session", sessionId="new")
        await nothing_left(server, but=1)
        assert (await other.run("print(2)", session="new"))["output"] == "2\n"
    await nothing_left(server)


async def test_events_that_come_late_change_no_cause(engine: LateAnswers, start_server: StartServer) -> None:
    """What ran out of memory is told at once, in its own result, and in no later one."""
    server = await start_server(data_dir=str(engine.path.parent / "data"), memory="192m")
    async with server.connect("u") as client, server.connect("u") as watcher:
        await client.run("import subprocess")
        await client.shell("true")
        await watcher.ask(type="open_session", sessionId="s")
        engine.hold_events()
        cell = await client.run(f'print(subprocess.run("{HOG}", shell=True).returncode)')
        command = await client.shell(HOG)
        shell = await client.shell(FILL)
        assert [(result.get("cause"), result.get("statePreserved")) for result in (cell, command, shell)] == [
            ("out_of_memory", True),
            ("out_of_memory", True),
            ("out_of_memory", False),
        ]
        engine.release_events()
        await status_with(watcher, "out_of_memory")
        after = [await client.run("print(1)"), await client.shell("echo 1")]
        assert [(result["output"], "cause" in result, "lateOutput" in result) for result in after] == [
            ("1\n", False, False),
            ("1\n", False, False),
        ]
