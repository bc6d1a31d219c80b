"""An engine of the test's own that freezes, is killed and comes back, under a server that goes on."""

import asyncio
import io
import os
import secrets
import signal
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import docker
import pytest

from kernelbridge.identity.principal import Principal
from kernelbridge.runtimes.docker.spec import WORKSPACE_LABEL
from kernelbridge.workspace.session_key import SessionKey
from tests.docker.faulty_engine import PrivateEngine
from tests.integration.conftest import PATIENCE, Client, Frame, RunningServer, StartServer
from tests.integration.emulator import Person

pytestmark = [
    pytest.mark.parametrize("runtime_name", ["docker"]),
    # Where the engine's socket is missing, the SDK drops the one that it could not connect instead of closing it.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]

TOLD, SETTLED = 20.0, 30.0
"""Seconds for the error of an engine that does not answer, and for order when it is back; half of that is promised."""
FROZEN = 30.0
"""Seconds for which an engine stands still."""
UNTIL_TOLD = (
    "import os, time\nprint('began', flush=True)\nwhile not os.path.exists('{name}'): time.sleep(0.05)\nprint(x)"
)

COMMAND = "echo begun; while [ ! -e /workspace/told ]; do sleep 0.05; done; echo ended"

Start = Callable[..., Awaitable[tuple[PrivateEngine, RunningServer]]]

SOON = 30.0
"""Seconds: it takes less than five where nothing else runs, and a minute where nothing notices."""


@pytest.fixture
async def engines(
    engine_home: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[PrivateEngine]]]:
    """Start an engine, which the servers of the test then use; it is stopped after them."""
    started: list[PrivateEngine] = []

    async def start(*, live_restore: bool = False) -> PrivateEngine:
        engine = await PrivateEngine.start(engine_home, live_restore=live_restore)
        started.append(engine)
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        return engine

    yield start
    for engine in started:
        await engine.stop()


@pytest.fixture
async def start(engines: Callable[..., Awaitable[PrivateEngine]], start_server: StartServer) -> Start:
    async def both(*, live_restore: bool = False) -> tuple[PrivateEngine, RunningServer]:
        engine = await engines(live_restore=live_restore)
        return engine, await start_server()

    return both


@contextmanager
def asked(engine: PrivateEngine) -> Iterator[docker.APIClient]:
    client = engine.factory()
    try:
        yield client.api
    finally:
        client.close()


def containers(engine: PrivateEngine, session: str) -> list[str]:
    with asked(engine) as api:
        label = f"{WORKSPACE_LABEL}={SessionKey(Principal('u'), session).workspace_id}"
        return [row["Id"] for row in api.containers(all=True, filters={"label": label})]


def init_of(engine: PrivateEngine, session: str) -> int:
    """Give the pid, here, of a container's first process."""
    (container,) = containers(engine, session)
    with asked(engine) as api:
        return int(api.inspect_container(container)["State"]["Pid"])


SPARE = "kernelbridge-test-spare"


def untag(engine: PrivateEngine, image: str) -> None:
    with asked(engine) as api:
        api.tag(image, SPARE)
        api.remove_image(image)


def retag(engine: PrivateEngine, image: str) -> None:
    with asked(engine) as api:
        api.tag(SPARE, image.partition(":")[0], image.partition(":")[2] or None)


def import_nothing(engine: PrivateEngine, image: str) -> None:
    """Give the name to an image with nothing in it but a directory."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        directory = tarfile.TarInfo("empty")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
    with asked(engine) as api:
        api.import_image_from_data(archive.getvalue(), image.partition(":")[0], image.partition(":")[2] or None)


async def until_gone(engine: PrivateEngine, session: str) -> None:
    async with asyncio.timeout(SETTLED):
        while await asyncio.to_thread(containers, engine, session):
            pass


async def until(client: Client, **expected: object) -> Frame:
    """Give the next frame that has these fields."""
    async with asyncio.timeout(PATIENCE):
        while True:
            frame = await client.receive()
            if expected.items() <= frame.items():
                return frame


@asynccontextmanager
async def steady_loop(most: float = 2.0) -> AsyncIterator[None]:
    """Check that no call that is answered late holds the event loop up: here each would for eight seconds."""
    loop, late = asyncio.get_running_loop(), 0.0

    async def turn() -> None:
        nonlocal late
        while True:
            before = loop.time()
            await asyncio.wait({loop.create_future()}, timeout=0.02)
            late = max(late, loop.time() - before - 0.02)

    turning = loop.create_task(turn())
    try:
        yield
    finally:
        turning.cancel()
        with suppress(asyncio.CancelledError):
            await turning
        print(f"event loop held up for at most {1000 * late:.0f} ms")
    assert late < most


async def everything_works(client: Client, person: Person, session: str = "s") -> None:
    """Use everything in a session, and its open terminal; the session loses its variables."""
    assert (await client.run("y = 6 * 7; print(y)", session=session))["output"] == "42\n"
    assert (await client.shell("echo $((6 * 7))", session=session))["output"] == "42\n"
    word = secrets.token_hex(4)
    await person.type(f"echo {word[:4]}''{word[4:]}\r")
    await person.until(word)
    await client.send(type="execute_code", sessionId=session, code="import time; time.sleep(1000)", requestId="sleeps")
    await client.send(type="interrupt", sessionId=session, requestId="stop")
    assert (await client.answer_to("sleeps"))["cause"] == "interrupted"
    assert (await last_step(client, "stop"))["statePreserved"] is True
    command = "sleep 1000 & sleep 1000"
    await client.send(type="terminal_command", sessionId=session, command=command, requestId="command")
    await client.send(type="interrupt", sessionId=session, target="terminal", jobs=True, requestId="jobs")
    assert (await client.answer_to("command"))["cause"] == "interrupted"
    await last_step(client, "jobs")
    await client.send(type="open_terminal", sessionId=session, rows=24, cols=80)
    terminal = (await until(client, type="terminal_opened"))["terminalId"]
    await client.send(type="terminal_input", sessionId=session, terminalId=terminal, data="echo ty''ped\n")
    shown = ""
    while "typed" not in shown:
        shown += (await until(client, type="terminal_data"))["data"]
    await client.send(type="close_terminal", sessionId=session, terminalId=terminal)
    await until(client, type="terminal_closed")
    stubborn = "while True:\n  try:\n    while True: pass\n  except BaseException: pass"
    await client.send(type="execute_code", sessionId=session, code=stubborn, requestId="stuck")
    await client.send(type="restart_kernel", sessionId=session, requestId="restart")
    assert (await client.answer_to("stuck"))["cause"] == "kernel_restarted"
    assert (await client.answer_to("restart"))["type"] == "kernel_restarted"
    after = await client.run("print('y' in globals())", session=session, requestId="after")
    assert after["output"] == "False\n"


async def last_step(client: Client, request_id: str) -> Frame:
    """Return the last report of an interrupt."""
    while not (frame := await client.answer_to(request_id))["done"]:
        pass
    return frame


async def test_a_frozen_engine_costs_nothing_but_new_sessions(start: Start) -> None:
    engine, server = await start()
    loop = asyncio.get_running_loop()
    async with server.connect("u") as cells, server.connect("u") as shell, server.connect("u") as terminal:
        for session in ("s", "leaving"):
            await cells.run("x = 41", session=session)
        await shell.shell("cd /tmp")
        person = await Person.open(terminal)
        await cells.send(type="execute_code", sessionId="s", code=UNTIL_TOLD.format(name="told"))
        await shell.send(type="terminal_command", sessionId="s", command=COMMAND)
        engine.freeze()
        frozen = loop.time()
        try:
            async with server.connect("u") as closer, server.connect("u") as new, steady_loop():
                closing = asyncio.create_task(in_time(closer.ask(type="close_session", sessionId="leaving")))
                asking = asyncio.create_task(in_time(new.run("1", session="new")))
                # Whoever has a session is served meanwhile, and what runs goes on to its end.
                async with server.connect("u") as other:
                    await other.ask(type="save_file", sessionId="s", filename="told", content="")
                assert (await cells.receive())["output"] == "began\n41\n"
                assert (await shell.receive())["output"] == "begun\nended\n"
                assert (await cells.run("print(x + 1)"))["output"] == "42\n"
                assert (await shell.shell("pwd"))["output"] == "/tmp\n"
                frame = await asking
                assert (frame["type"], frame["code"], frame["retryable"]) == ("error", "runtime_unavailable", True)
                assert "restart the engine" in frame["error"]
                assert (await closing)["closed"]
                await everything_works(shell, person)
                while loop.time() < frozen + FROZEN:
                    await everything_works(shell, person)
        finally:
            engine.thaw()
        await engine.answered()
        assert (await shell.shell("pwd"))["output"] == "/tmp\n"
        # What it could not be asked to remove is removed now, and what comes back starts anew.
        await until_gone(engine, "leaving")
        async with server.connect("u") as new:
            assert (await new.run("print(2)", session="new"))["output"] == "2\n"
            frame = await new.run("print('x' in globals())", session="leaving")
            assert frame["output"] == "False\n"
            assert len(await asyncio.to_thread(containers, engine, "new")) == 1


async def in_time(answer: Awaitable[Frame]) -> Frame:
    """Return an answer that has to come soon, however long the engine stands still."""
    async with asyncio.timeout(TOLD):
        return await answer


async def test_a_session_that_returns_before_its_container_is_gone(start: Start) -> None:
    engine, server = await start()
    async with server.connect("u") as client:
        await client.run("x = 41")
        engine.freeze()
        try:
            assert (await client.ask(type="close_session", sessionId="s"))["closed"]
            await client.send(type="execute_code", sessionId="s", code="print('x' in globals())")
        finally:
            engine.thaw()
        assert (await client.receive())["output"] == "False\n"
        assert len(await asyncio.to_thread(containers, engine, "s")) == 1


async def test_who_returns_to_a_session_that_is_just_being_closed_hears_of_a_frozen_engine_in_time(
    start: Start,
) -> None:
    """Whatever else waits for the engine before, that of the old container's removal included."""
    engine, server = await start()
    async with server.connect("u") as client, server.connect("u") as closer:
        await client.run("x = 41")
        engine.freeze()
        try:
            async with asyncio.timeout(TOLD), steady_loop():
                await closer.send(type="close_session", sessionId="s", requestId="close")
                await closer.ask(type="ping")  # answered behind it: the session is being closed
                frame = await client.run("1", requestId="returns")
            assert (frame["type"], frame["code"], frame["retryable"]) == ("error", "runtime_unavailable", True)
            assert "restart the engine" in frame["error"]
            async with asyncio.timeout(TOLD):  # and the next one sooner, but not before the engine was asked
                frame = await client.run("1", requestId="again")
            assert (frame["code"], frame["retryable"]) == ("runtime_unavailable", True)
        finally:
            engine.thaw()
        await engine.answered()
        async with asyncio.timeout(SETTLED):
            assert (await client.run("print('x' in globals())", requestId="next"))["output"] == "False\n"
        assert len(await asyncio.to_thread(containers, engine, "s")) == 1


@pytest.mark.parametrize("how", ["killed", "restarted"])
async def test_an_engine_that_ends_and_spares_its_containers(start: Start, how: str) -> None:
    engine, server = await start(live_restore=True)
    async with (
        server.connect("u") as cells,
        server.connect("u") as shell,
        server.connect("u") as other,
        server.connect("u") as terminal,
        server.connect("u") as new,
    ):
        await cells.run("x = 41")
        await cells.run("pass", session="dies")
        await shell.shell("cd /tmp")
        person = await Person.open(terminal, session="other")
        await cells.send(type="execute_code", sessionId="s", code=UNTIL_TOLD.format(name="told"))
        await shell.send(type="terminal_command", sessionId="s", command=COMMAND)
        victim = await asyncio.to_thread(init_of, engine, "dies")
        await (engine.kill() if how == "killed" else engine.stop())
        async with steady_loop():
            frame = await in_time(new.run("1", session="new"))
            assert (frame["code"], frame["retryable"]) == ("runtime_unavailable", True)
            assert "start the Docker engine" in frame["error"]
            await everything_works(other, person, "other")
        await new.ask(type="resume", sessionId="dies")
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(SETTLED):
            await until(new, type="session_status", status="closed", cause="sandbox_lost")
        await engine.run()
        await everything_works(other, person, "other")
        await new.ask(type="save_file", sessionId="s", filename="told", content="")
        assert (await cells.receive())["output"] == "began\n41\n"
        # The command has seen nothing of all that.
        assert (await shell.receive())["output"] == "begun\nended\n"
        assert (await shell.shell("pwd"))["output"] == "/tmp\n"
        frame = await cells.run("import os; os._exit(3)")
        assert (frame["cause"], frame["statePreserved"]) == ("kernel_died", False)
        assert (await cells.run("x = 7; print(x)"))["output"] == "7\n"
        assert (await cells.run("print('lives')", session="dies"))["output"] == "lives\n"
    await until_gone(engine, "s")


async def test_an_engine_that_is_killed_and_takes_its_containers_along(start: Start) -> None:
    engine, server = await start()
    async with server.connect("u") as client:
        await client.shell("echo kept > file")
        await client.run("x = 41")
        await client.send(type="execute_code", sessionId="s", code=UNTIL_TOLD.format(name="told"))
        await engine.kill()
        await engine.run()
        async with asyncio.timeout(SETTLED):
            frame = await client.receive()
        assert (frame["cause"], frame["statePreserved"]) == ("sandbox_lost", False)
        assert (await client.shell("cat file"))["output"] == "kept\n"
        assert (await client.run("print(6 * 7)"))["output"] == "42\n"
        assert len(await asyncio.to_thread(containers, engine, "s")) == 1


async def test_an_image_that_is_absent_or_broken(start: Start, workspace_image: str) -> None:
    engine, server = await start()
    async with server.connect("u") as client, server.connect("u") as other:
        await client.run("x = 41")
        await asyncio.to_thread(untag, engine, workspace_image)
        try:
            async with asyncio.timeout(SOON):
                frame = await other.run("1", session="new")
            assert (frame["code"], frame["retryable"]) == ("image_unusable", False)
            assert "images build" in frame["error"]
            assert await asyncio.to_thread(containers, engine, "new") == []
            assert (await client.run("print(x)"))["output"] == "41\n"
            await asyncio.to_thread(import_nothing, engine, workspace_image)
            async with asyncio.timeout(SOON):
                frame = await other.run("1", session="new")
            assert (frame["code"], frame["retryable"]) == ("image_unusable", False)
            assert await asyncio.to_thread(containers, engine, "new") == []
        finally:
            await asyncio.to_thread(retag, engine, workspace_image)
        assert (await other.run("print(2)", session="new"))["output"] == "2\n"
