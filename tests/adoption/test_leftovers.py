"""What a killed server leaves besides sessions to go on with is removed, and nothing else is touched."""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernelbridge.identity.principal import Principal
from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL, WORKSPACE_LABEL, container_name
from kernelbridge.workspace.session_key import SessionKey
from tests.adoption import house as houses
from tests.adoption.house import House, begin, docker_only, engine, result, resume, until_begun, until_there
from tests.integration.conftest import PATIENCE, Frame


def running(mark: str) -> bool:
    """Whether a process of this machine was started with an argument."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"sleep\0{mark}\0".encode() == path.read_bytes():
                return True
    return False


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not there():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def stranger(image: str, labels: dict[str, str]) -> Iterator[str]:
    """Have a container that is not the server's."""
    with engine() as api:
        made = api.create_container(image, ["sleep", "1000"], name=f"kb-test-{secrets.token_hex(4)}", labels=labels)[
            "Id"
        ]
        api.start(made)
        try:
            yield made
            assert api.inspect_container(made)["State"]["Running"]
        finally:
            api.remove_container(made, force=True)


async def test_whom_nobody_returns_for_is_removed_after_linger(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("x = 1", session="a")
        await begin(client, "import time; time.sleep(1000)", "cell", session="b")
        await server.kill()
    assert len(house.sandboxes()) == 2
    await house.serve(linger="1s")
    await house.until_nothing_is_left()


@docker_only
async def test_other_servers_and_other_containers_are_not_touched(house: House, workspace_image: str) -> None:
    async with houses.house("docker", workspace_image) as other:
        servers = [await each.serve() for each in (house, other)]
        for number, (each, server) in enumerate(zip((house, other), servers, strict=True)):
            async with each.connect(server) as client:
                await client.run(f"x = {number}")
        with stranger(workspace_image, {}), stranger(workspace_image, {INSTANCE_LABEL: "another"}):
            before = other.containers()
            await servers[0].kill()
            server = await house.serve(linger="0")
            await house.until_nothing_is_left()
            assert other.containers() == before
            async with other.connect(servers[1]) as client:
                assert (await client.run("print(x)"))["output"] == "1\n"
            await servers[1].kill()
            await server.stop()
            again = await other.serve()
            async with other.connect(again) as client:
                assert (await client.run("print(x)"))["output"] == "1\n"


@docker_only
async def test_a_crash_during_a_start_or_an_end_leaves_nothing(house: House, workspace_image: str) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        for session in ("kept", "ending"):
            await client.run("x = 1", session=session)
        await server.kill()
    house.state("ending").unlink()  # the first thing that is done to end a session
    key = SessionKey(Principal("u"), "starting")
    labels = {INSTANCE_LABEL: house.instance, WORKSPACE_LABEL: key.workspace_id}
    with engine() as api:
        name = container_name(house.instance, key.workspace_id)
        api.create_container(workspace_image, ["sleep", "1000"], name=name, labels=labels)
    (house.data_dir / "run" / f"docker-{key.workspace_id}-0").mkdir()
    assert len(house.containers()) == 3
    server = await house.serve()
    assert house.containers() == house.containers("kept")
    [shared] = (house.data_dir / "run").iterdir()
    assert SessionKey(Principal("u"), "kept").workspace_id in shared.name
    async with house.connect(server) as client:
        assert (await client.run("print(x)", session="kept"))["output"] == "1\n"
        assert not (await client.run("print(x)", session="ending"))["success"]
        await server.stop()
    assert house.left() == []


@docker_only
async def test_a_server_that_cannot_start_costs_no_session(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("x = 1")
        await begin(client, "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\nprint(x)", "cell")
        await server.kill()
    containers = house.containers()
    await cannot_listen(house)
    with pytest.raises(AssertionError, match="does not answer"):
        await house.serve(DOCKER_HOST="unix:///nowhere.sock")
    assert house.containers() == containers
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        houses.touch(house.files("s"), "go")
        assert (await result(client, "cell"))["output"] == "1\n"


async def test_a_sandbox_whose_session_was_being_ended_is_ended(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        for session in ("kept", "ending"):
            await client.run("x = 1", session=session)
        await server.kill()
    house.state("ending").unlink()  # the first thing that is done to end a session
    server = await house.serve()
    assert house.sandboxes() == house.sandboxes("kept") != []
    async with house.connect(server) as client:
        assert (await client.run("print(x)", session="kept"))["output"] == "1\n"
        await server.stop()
    assert house.left() == []


async def cannot_listen(house: House, linger: str = "60s") -> None:
    """Start a server whose port is in use."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AssertionError, match="Cannot listen"):
            await house.serve("--port", str(taken.getsockname()[1]), linger=linger)


@pytest.mark.parametrize("linger", ["60s", "0"])
async def test_a_server_that_cannot_start_tells_nothing_and_ends_nothing(house: House, linger: str) -> None:
    server = await house.serve()
    files = house.files("s")
    async with house.connect(server) as client:
        await client.run("x = 1")
        await begin(client, f"{houses.until('go')}\nprint(x)\nopen('over', 'w').close()", "cell")
        command = "touch began; until [ -e go ]; do sleep 0.02; done; echo over"
        await client.send(type="terminal_command", sessionId="s", command=command, requestId="command")
        await until_begun(client, files / "began")
        await server.kill()
    houses.touch(files, "go")
    await until_there(files / "over")  # while no server is there
    await cannot_listen(house, linger)
    server = await house.serve()
    answers: dict[str, Frame] = {}
    async with house.connect(server) as client:
        await resume(client)
        while answers.keys() != {"cell", "command"}:
            frame = await client.receive()
            if frame["type"] in {"execution_result", "terminal_output"}:
                answers[frame["requestId"]] = frame
    assert answers["cell"]["output"] == "1\n"
    assert answers["command"]["output"] == "over\n"


@docker_only
async def test_whoever_comes_back_to_another_runtime_is_told_what_is_lost(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        opened = await client.ask(type="open_session", sessionId="s")
        assert opened["image"]
        await client.ask(type="save_file", sessionId="s", filename="kept", content="y")
        await begin(client, "import time; time.sleep(1000)", "cell")
        await client.run("x = 1", session="closed")
        await server.kill()
    house.runtime = "local"
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        status = await client.receive()
        assert (status["status"], status["cause"]) == ("closed", "sandbox_lost")
        assert (await result(client, "cell"))["cause"] == "sandbox_lost"
        await client.send(
            type="execute_code", sessionId="s", code="print(open('kept').read(), 'x' in globals())", requestId="n"
        )
        answer = await result(client, "n")
        assert (answer["output"], answer["statePreserved"]) == ("y False\n", False)
        await client.send(type="close_session", sessionId="closed", requestId="c")
        assert (await client.answer_to("c"))["closed"]
        await server.kill()
    house.runtime = "docker"
    server = await house.serve()
    assert house.containers() == []
    async with house.connect(server) as client:
        await resume(client)  # and back: now it is the local sandbox that is gone
        assert (await client.receive())["cause"] == "sandbox_lost"
        await client.send(type="execute_code", sessionId="s", code="print('new')", requestId="n")
        assert (await result(client, "n"))["output"] == "new\n"
        await client.send(type="resume", sessionId="closed", requestId="r")
        assert (await client.answer_to("r"))["code"] == "unknown_session"
        await server.stop()
    # The local sandbox would end itself after its session's linger and a minute; a server of its runtime does it now.
    house.runtime = "local"
    server = await house.serve()
    await server.stop()
    assert house.left() == []


@docker_only
async def test_auto_gives_up_no_containers(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("x = 1")
        await server.kill()
    containers = house.containers()
    house.runtime = "auto"
    nowhere = "unix:///nowhere.sock"
    said = await house.cannot_serve(DOCKER_HOST=nowhere)
    assert "The Docker engine does not answer" in said
    assert "start the Docker engine" in said
    assert "1 session of an earlier server is still in its containers" in said
    assert "--runtime local" in said
    assert house.containers() == containers
    server = await house.serve()
    async with house.connect(server) as client:
        assert (await client.run("print(x)"))["output"] == "1\n"
        await server.stop()
    assert house.containers() == []
    server = await house.serve(DOCKER_HOST=nowhere)  # there is nothing to give up
    async with house.connect(server) as client:
        assert (await client.run("print(2)"))["output"] == "2\n"
        await server.stop()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 999}', b"\xff\x00", None])
async def test_a_damaged_note_costs_its_session_alone(house: House, damage: bytes | None) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        for session in ("whole", "damaged"):
            await client.run("x = 1", session=session)
        await server.kill()
    if damage is None:  # another session's
        house.state("damaged").write_bytes(house.state("whole").read_bytes())
    else:
        house.state("damaged").write_bytes(damage)
    server = await house.serve()
    assert house.sandboxes("damaged") == []
    async with house.connect(server) as client:
        assert (await client.run("print(x)", session="whole"))["output"] == "1\n"
        await client.send(type="resume", sessionId="damaged", requestId="r")
        assert (await client.answer_to("r"))["code"] == "unknown_session"
        assert not (await client.run("print(x)", session="damaged"))["success"]


PROMPT = 20.0
"""Seconds in which a sandbox has ended that waits two for a server; one that was told nothing waits 30."""
SOON = """
from kernelbridge.workspace import options
options.SERVER_RETURNS = 1.0
from kernelbridge.cli import main
main()
"""


@pytest.mark.parametrize("idle", ["0", "300ms"], ids=["running", "paused"])
async def test_a_sandbox_that_no_server_comes_back_to_ends_itself(house: House, idle: str) -> None:
    mark = str(10**9 + secrets.randbelow(10**9))
    server = await house.serve("--idle-timeout", idle, linger="1s", program=SOON)
    async with house.connect(server, streams=True) as client:
        code = f"import subprocess; child = subprocess.Popen(['sleep', '{mark}'])"
        await client.send(type="execute_code", sessionId="s", code=code, requestId="a")
        while (await client.receive()).get("status") != ("paused" if idle != "0" else "ready"):
            pass
        await until(lambda: running(mark))
        await server.kill()
    assert house.sandboxes("s")
    async with asyncio.timeout(PROMPT):
        await until(lambda: not running(mark) and not house.sandboxes("s"))
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        status = await client.receive()
        assert (status["status"], status["cause"]) == ("closed", "sandbox_lost")
        await server.stop()
    assert house.left() == []


async def test_a_session_that_asked_for_more_time_waits_longer_for_a_server(house: House) -> None:
    server = await house.serve(linger="0", program=SOON)
    async with house.connect(server) as client:
        for session in ("short", "long", "kept"):
            await client.run("x = 1", session=session)
        await client.ask(type="open_session", sessionId="long", linger=1000)
        await client.ask(type="open_session", sessionId="kept", keepWhileRunning=True)
        await server.kill()
    async with asyncio.timeout(PROMPT):
        await until(lambda: not house.sandboxes("short"))
    server = await house.serve()
    async with house.connect(server) as client:
        for session in ("long", "kept"):
            assert (await client.run("print(x)", session=session))["output"] == "1\n"
        await server.stop()
    assert house.left() == []
