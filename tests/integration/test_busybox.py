"""An image without bash whose `sh` is busybox, through the whole server."""

import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest

from tests.integration.conftest import Client, StartServer

DOCKERFILE = """
FROM {base}
USER root
COPY busybox /bin/busybox
RUN ln -sf busybox /bin/sh && rm -f /bin/bash
USER 1000:100
"""


@pytest.fixture
def runtime_name() -> str:
    """Only there can a sandbox have another shell than this machine."""
    return "docker"


@pytest.fixture(scope="module")
def image(workspace_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    name, context = f"kernelbridge-test-{secrets.token_hex(4)}", tmp_path_factory.mktemp("busybox")
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=workspace_image))
    shutil.copy(Path("/bin/busybox"), context)
    engine = docker.from_env()
    try:
        engine.images.build(path=str(context), tag=name)
        yield name
        engine.api.remove_image(name, force=True)
    finally:
        engine.close()


@pytest.fixture
async def client(start_server: StartServer, image: str) -> AsyncIterator[Client]:
    server = await start_server(image=image)
    async with server.connect("u") as client:
        yield client


async def test_background_jobs(client: Client) -> None:
    first = await client.shell("cd /tmp; A=kept; sh --help 2>&1 | head -n 1")
    assert first["output"].startswith("BusyBox")
    await client.shell("for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 >/dev/null & echo $! >>jobs; done")
    # They end while the shell is idle; a job that has ended has no descriptors, whether or not the shell has noticed.
    code = """
import os
pids = list(map(int, open("/tmp/jobs")))
for pid in pids:
    os.kill(pid, 9)
while any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids):
    pass
"""
    assert (await client.run(code, timeout=20))["success"]
    after = await client.shell("wait; jobs; echo $A")
    assert (after["output"].splitlines()[-1], after["cwd"], "statePreserved" in after) == ("kept", "/tmp", False)


async def test_heredocs_unclosed_quotes_and_exit_codes(client: Client) -> None:
    frame = await client.shell("cat <<'END' | sort\nb $x 'q'\na\nEND\n(exit 7)")
    assert (frame["output"], frame["exitCode"]) == ("a\nb $x 'q'\n", 7)
    broken = await client.shell("A=1\necho 'unclosed")
    assert (broken["exitCode"], "cause" in broken) == (2, False)
    unknown = (await client.shell("no-such-program"))["output"]
    assert (unknown[:4], unknown[-27:]) == ("sh: ", "no-such-program: not found\n")
    assert (await client.shell("exit 3"))["cause"] == "shell_exited"


async def test_what_runs_too_long_leaves_nothing(client: Client) -> None:
    await client.shell("A=kept")
    ended = await client.shell("sleep 1111 & setsid sleep 1111 & sleep 1111", timeout=0.5)
    assert (ended["cause"], ended["statePreserved"]) == ("timeout", True)
    assert (await client.shell("echo $A; ps -ef | grep -c '[s]leep 1111'"))["output"] == "kept\n0\n"


async def test_an_interrupt(client: Client) -> None:
    await client.shell("A=kept; mkfifo go")
    await client.send(type="terminal_command", sessionId="s", command="cat go; while :; do :; done", requestId="run")
    code = "open('go', 'w').close()"  # it is there, then
    await client.send(type="execute_code", sessionId="s", code=code, requestId="cell")
    assert (await client.answer_to("cell"))["success"]
    await client.send(type="interrupt", sessionId="s", target="terminal", requestId="stop")
    assert (await client.answer_to("stop"))["step"] == "sigint"
    assert (await client.answer_to("run"))["cause"] == "interrupted"
    assert (await client.shell("echo $A"))["output"] == "kept\n"
