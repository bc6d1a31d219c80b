"""Opening with a choice, asking, closing: and that nothing of another user's sessions can be told from nothing."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.integration.conftest import Client, Frame, RunningServer, StartServer
from tests.integration.test_lifecycle import children, running

MIB = 1 << 20


async def ready(client: Client, session: str = "s", **choice: object) -> Frame:
    """Open a session and give the frame that says that it is."""
    frame = await client.ask(type="open_session", sessionId=session, **choice)
    assert frame["type"] == "session_ready", frame
    return frame


async def refused(client: Client, session: str = "s", **choice: object) -> Frame:
    frame = await client.ask(type="open_session", sessionId=session, **choice)
    assert frame["type"] == "error", frame
    return frame


async def test_a_session_opened_with_nothing_is_the_default_one(server: RunningServer, client: Client) -> None:
    frame = await ready(client, requestId="r")
    assert frame["requestId"] == "r"
    assert frame["runtime"] == server.runtime
    assert (frame["image"] is None) == (server.runtime == "local")
    assert (frame["kernel"], frame["language"], frame["fresh"]) == ("python3", "python", True)
    assert frame["limits"] == {"memory": 1 << 30, "cpus": 1.0, "pids": 256, "disk": 2 << 30}
    assert len(running(server)) == 1
    await client.run("x = 1")
    again = await ready(client)
    assert (again["fresh"], again["created"]) == (False, frame["created"])
    assert (await client.run("print(x)"))["output"] == "1\n"


async def test_commands_sent_behind_it_wait_for_the_chosen_session(client: Client) -> None:
    await client.send(type="open_session", sessionId="s", env={"GREETING": "hello"}, requestId="open")
    await client.send(
        type="execute_code", sessionId="s", code="import os; print(os.environ['GREETING'])", requestId="cell"
    )
    await client.send(type="terminal_command", sessionId="s", command="echo $GREETING", requestId="command")
    assert (await client.answer_to("open"))["type"] == "session_ready"
    assert (await client.answer_to("cell"))["output"] == "hello\n"
    assert (await client.answer_to("command"))["output"] == "hello\n"


async def test_limits_below_the_servers_are_in_effect(client: Client) -> None:
    frame = await ready(client, limits={"memory": 200 * MIB, "cpus": 0.5})
    assert frame["limits"] == {"memory": 200 * MIB, "cpus": 0.5, "pids": 256, "disk": 2 << 30}
    for session, enough in (("s", False), ("with-the-servers-own", True)):
        await client.send(type="execute_code", sessionId=session, code="x = bytearray(400 << 20)", requestId=session)
        assert (await client.answer_to(session))["success"] == enough


async def test_an_open_session_is_not_changed_behind_its_back(client: Client) -> None:
    await ready(client, env={"A": "1"}, limits={"pids": 100})
    for choice in ({"env": {"A": "2"}}, {"limits": {"pids": 101}}, {"kernel": "other"}):
        frame = await refused(client, **choice)
        assert (frame["code"], frame["retryable"]) == ("session_conflict", False)
        assert "close_session" in frame["error"]
    assert (await ready(client, env={"A": "1"}))["limits"]["pids"] == 100
    await client.ask(type="close_session", sessionId="s")
    # What was chosen is forgotten with the session.
    assert (await ready(client))["limits"]["pids"] == 256
    assert (await client.run("import os; print(os.environ.get('A'))"))["output"] == "None\n"


async def test_a_session_that_a_command_opened_has_the_default_choice(client: Client) -> None:
    await client.run("pass")
    assert (await refused(client, env={"A": "1"}))["code"] == "session_conflict"
    assert not (await ready(client, kernel="python3"))["fresh"]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"image": "someone/else:1"}, "image"),
        ({"limits": {"memory": 2 << 30}}, "limits.memory"),
        ({"limits": {"memory": 1}}, "limits.memory"),
        ({"limits": {"cpus": 64}}, "limits.cpus"),
        ({"limits": {"pids": 257}}, "limits.pids"),
        ({"env": {"PATH": "/tmp"}}, "env"),
        ({"env": {"LD_PRELOAD": "x.so"}}, "env"),
        ({"env": {"A B": "x"}}, "env"),
        ({"env": {"A": "\0"}}, "env"),
        ({"env": {f"N{n}": "" for n in range(65)}}, "env"),
        ({"env": {"A": "x" * 65537}}, "env"),
        ({"env": ["A=1"]}, "env"),
        ({"kernel": "../python3"}, "kernel"),
    ],
)
@pytest.mark.parametrize("runtime_name", ["local"])
async def test_what_the_server_does_not_grant_is_refused_by_name(
    server: RunningServer, client: Client, choice: dict[str, Any], names: str
) -> None:
    frame = await refused(client, **choice)
    assert frame["code"] == "invalid_field"
    assert names in frame["message"]
    assert running(server) == []


async def test_a_kernel_that_the_image_lacks_is_refused_with_those_it_has(client: Client) -> None:
    frame = await refused(client, kernel="nobody-has-it")
    assert (frame["code"], frame["retryable"]) == ("invalid_field", False)
    assert "'nobody-has-it'" in frame["message"]
    assert "python3" in frame["error"]
    # Not even a cell runs in another interpreter than the one that was asked for.
    assert (await client.run("print(1)"))["code"] == "invalid_field"
    assert (await ready(client, kernel="python3"))["fresh"]
    assert (await client.run("print(1)"))["output"] == "1\n"


@pytest.fixture
def other_image(workspace_image: str) -> Any:
    engine = docker.from_env()
    name = "kernelbridge-test-other:1"
    engine.images.get(workspace_image).tag(name)
    yield name
    engine.images.remove(name)
    engine.close()


@pytest.mark.parametrize("runtime_name", ["docker"])
async def test_an_image_that_the_operator_allows_can_be_chosen(start_server: StartServer, other_image: str) -> None:
    server = await start_server(allow_image=(other_image,))
    async with server.connect("u") as client:
        assert (await ready(client, image=other_image))["image"] == other_image
        assert (await client.run("print(1)"))["output"] == "1\n"
        engine = docker.from_env()
        instance = (server.data_dir / "instance").read_text().strip()
        (container,) = engine.containers.list(filters={"label": f"kernelbridge.instance={instance}"})
        assert container.image is not None
        assert other_image in container.image.tags
        engine.close()
        frame = await refused(client, "t", image="kernelbridge-test-absent:1")
        assert other_image in frame["error"]


@pytest.mark.parametrize("runtime_name", ["docker"])
async def test_an_allowed_image_that_is_absent_is_said_to_be(start_server: StartServer) -> None:
    server = await start_server(allow_image=("kernelbridge-test-absent:1",))
    async with server.connect("u") as client:
        assert (await refused(client, image="kernelbridge-test-absent:1"))["code"] == "image_unusable"
        assert running(server) == []
        await ready(client)


async def test_what_an_open_session_is_can_be_asked(client: Client) -> None:
    await client.run("pass")
    await client.send(type="execute_code", sessionId="s", code="import time; time.sleep(60)", requestId="long")
    await client.send(type="execute_code", sessionId="s", code="pass", requestId="queued")
    await client.send(type="session_info", sessionId="s", requestId="info")
    frame = await client.answer_to("info")
    assert (frame["state"], frame["kernelState"], frame["stored"]) == ("active", "ready", True)
    assert (frame["connections"], frame["queuedCells"], frame["queuedCommands"]) == (1, 1, 0)
    assert frame["runningSince"] > frame["created"]
    assert (frame["kernel"], frame["language"], frame["terminals"]) == ("python3", "python", [])
    assert frame["waitingInput"] is False
    assert frame["lastSeq"] > 0


async def test_asking_for_a_session_makes_none(server: RunningServer, client: Client) -> None:
    frame = await client.ask(type="session_info", sessionId="nobody")
    assert frame == {
        "type": "session_info_reply",
        "sessionId": "nobody",
        "state": "absent",
        "kernelState": "absent",
        "stored": False,
        "runtime": server.runtime,
        "disk": {"used": 0, "limit": 2 << 30, "files": 0, "maxFiles": 200_000},
        "maxLinger": 3600.0,
    }
    assert (await client.ask(type="resume", sessionId="nobody"))["code"] == "unknown_session"
    closed = await client.ask(type="close_session", sessionId="nobody", deleteFiles=True)
    assert (closed["closed"], closed["filesDeleted"]) == (False, False)
    assert (await client.ask(type="list_sessions"))["sessions"] == []
    assert list((server.data_dir / "workspaces").iterdir()) == []


async def test_sessions_are_listed_open_or_stored(server: RunningServer) -> None:
    async with server.connect("u") as client, server.connect("v") as other:
        await client.ask(type="save_file", sessionId="stored", filename="f", content="x")
        await client.ask(type="close_session", sessionId="stored")
        await client.run("pass", session="live")
        await other.run("pass", session="theirs")
        entries = (await client.ask(type="list_sessions", requestId="r"))["sessions"]
        assert [(entry["sessionId"], entry["state"], entry["stored"]) for entry in entries] == [
            ("live", "active", True),
            ("stored", "absent", True),
        ]
        assert [entry["sessionId"] for entry in (await other.ask(type="list_sessions"))["sessions"]] == ["theirs"]


async def test_closing_ends_what_runs_and_what_comes_then_opens_it_anew(server: RunningServer, client: Client) -> None:
    await client.run("x = 1")
    await client.ask(type="save_file", sessionId="s", filename="kept", content="kept")
    await client.send(type="execute_code", sessionId="s", code="import time; time.sleep(60)", requestId="long")
    await client.send(type="close_session", sessionId="s", requestId="close")
    await client.send(
        type="execute_code", sessionId="s", code="print('x' in globals(), open('kept').read())", requestId="anew"
    )
    ended = await client.answer_to("long")
    assert (ended["cause"], ended["success"]) == ("session_closed", False)
    closed = await client.answer_to("close")
    assert (closed["closed"], closed["filesDeleted"]) == (True, False)
    assert (await client.answer_to("anew"))["output"] == "False kept\n"
    assert len(running(server)) == 1


HOSTILE = """
import os
os.symlink('/etc', 'link'); os.mkfifo('fifo'); os.mkdir('closed', 0o000); open('a file', 'w').close()
os.link('a file', 'hard')
os.makedirs('x/y/z'); os.chmod('x/y', 0o500)
here = os.getcwd()
for _ in range(500):
    os.mkdir('deep' * 50); os.chdir('deep' * 50)
os.chdir(here)
"""


async def test_files_are_deleted_when_that_is_asked_whatever_they_are(server: RunningServer, client: Client) -> None:
    assert (await client.run(HOSTILE))["error"] is None
    await client.send(type="close_session", sessionId="s", deleteFiles=True, requestId="close")
    # It comes while the files are being deleted, and is not deleted with them.
    await client.send(type="save_file", sessionId="s", filename="new", content="new", requestId="save")
    assert (await client.answer_to("save"))["success"]
    closed = await client.answer_to("close")
    assert (closed["closed"], closed["filesDeleted"]) == (True, True)
    assert (await client.shell("ls -A | grep -v '^\\.'"))["output"] == "new\n"
    await client.ask(type="close_session", sessionId="s", deleteFiles=True)
    assert list((server.data_dir / "workspaces").iterdir()) == []
    assert Path("/etc/passwd").exists()


async def test_files_of_a_session_that_is_not_open_can_be_deleted(server: RunningServer, client: Client) -> None:
    await client.ask(type="save_file", sessionId="s", filename="f", content="x")
    await client.ask(type="close_session", sessionId="s")
    assert (await client.ask(type="session_info", sessionId="s"))["stored"]
    closed = await client.ask(type="close_session", sessionId="s", deleteFiles=True)
    assert (closed["closed"], closed["filesDeleted"]) == (False, True)
    assert list((server.data_dir / "workspaces").iterdir()) == []


async def statuses(client: Client, last: tuple[str, str | None]) -> list[str]:
    """Give the statuses that come, to the one named."""
    found = []
    while True:
        frame = await client.receive()
        if frame["type"] == "session_status":
            found.append(frame["status"])
            if (frame["status"], frame.get("cause")) == last:
                return found


async def test_who_streams_is_told_of_the_session_and_who_never_asked_is_not(server: RunningServer) -> None:
    async with server.connect("u&stream=true") as streaming, server.connect("u") as plain:
        await streaming.ask(type="save_file", sessionId="s", filename="f", content="")
        assert (await plain.run("print(1)")).keys() & {"seq"} == set()
        assert await statuses(streaming, ("ready", None)) == ["starting", "ready"]
        await plain.send(type="execute_code", sessionId="s", code="import os; os._exit(1)")
        assert (await plain.receive())["cause"] == "kernel_died"
        assert await statuses(streaming, ("ready", "kernel_died")) == ["ready"]
        assert (await plain.run("print(2)"))["output"] == "2\n"
        assert await statuses(streaming, ("ready", None)) == ["restarting", "ready"]
        assert (await plain.ask(type="close_session", sessionId="s"))["type"] == "close_session_reply"
        assert await statuses(streaming, ("closed", "session_closed")) == ["closing", "closed"]
        assert plain.frames == []


async def test_a_lost_sandbox_is_told_with_its_cause(runtime_name: str, server: RunningServer) -> None:
    async with server.connect("u") as client:
        await ready(client)
        if runtime_name == "docker":
            engine = docker.from_env()
            instance = (server.data_dir / "instance").read_text().strip()
            (container,) = engine.containers.list(filters={"label": f"kernelbridge.instance={instance}"})
            container.remove(force=True)
            engine.close()
        else:
            for pid in children(os.getpid()):
                if b"bwrap" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        assert await statuses(client, ("closed", "sandbox_lost"))
        await client.send(type="execute_code", sessionId="s", code="print(1)", requestId="next")
        assert (await client.answer_to("next"))["output"] == "1\n"


async def test_the_environment_of_a_session_is_not_kept_with_its_files(server: RunningServer, client: Client) -> None:
    await ready(client, env={"A": "secret"})
    (label,) = (server.data_dir / "workspaces").glob("*/session.json")
    assert json.loads(label.read_text()) == {"principal": "tester", "sessionId": "s"}


ABOUT = ("session_info", "resume", "close_session", "list_sessions")


@pytest.mark.parametrize("runtime_name", ["local"])
async def test_another_users_session_is_one_that_does_not_exist(start_server: StartServer) -> None:
    """Whatever the owner does meanwhile, each answer about its session is the one about a session of nobody."""
    server = await start_server(linger="60s")
    chance = random.Random(4)
    async with server.connect("owner") as owner, server.connect("guest") as guest:
        for step in range(60):
            match chance.randrange(5):
                case 0:
                    await owner.run(f"x = {step}", session="theirs")
                case 1:
                    await owner.ask(type="save_file", sessionId="theirs", filename=f"f{step}", content="x")
                case 2:
                    await ready(owner, "theirs")
                case 3:
                    await owner.ask(type="close_session", sessionId="theirs", deleteFiles=chance.random() < 0.5)
                case _:
                    assert (await owner.ask(type="session_info", sessionId="theirs"))["type"] == "session_info_reply"
            about, options = chance.choice(ABOUT), {"after": step, "deleteFiles": chance.random() < 0.5}
            said = []
            for session in ("theirs", "nobodys"):
                answer = await guest.ask(type=about, sessionId=session, requestId="r", **options)
                said.append(json.dumps(answer).replace(session, "*"))
            assert said[0] == said[1], (step, about)
        assert guest.frames == []
