"""The servers and clients of the integration tests, and ways to do harm behind their backs."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from tests.docker.faulty_engine import home_with_image
from tests.integration.conftest import (
    Client,
    Frame,
    RunningServer,
    client,
    pytest_generate_tests,
    runtime_name,
    server,
    share_server,
    shared_servers,
    start_server,
)

__all__ = [
    "client",
    "engine_home",
    "pytest_generate_tests",
    "runtime_name",
    "server",
    "share_server",
    "shared_servers",
    "start_server",
]

Remove = Callable[[RunningServer], None]


def remove_containers(server: RunningServer) -> None:
    """Do what `docker rm -f` does, to every container of the server."""
    instance = (server.data_dir / "instance").read_text().strip()
    engine = docker.from_env()
    try:
        for container in engine.containers.list(filters={"label": f"kernelbridge.instance={instance}"}):
            container.remove(force=True)
    finally:
        engine.close()


def kill_bubblewrap() -> None:
    """Kill the monitors of this process's local sandboxes, and with each its whole sandbox."""
    for task in list(Path("/proc/self/task").glob("*/children")):
        for pid in map(int, task.read_text().split()):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "bwrap":
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def lose_sandboxes(runtime_name: str) -> Callable[[RunningServer], object]:
    """Give what makes a server's sandboxes vanish behind its back."""

    async def lose(server: RunningServer) -> None:
        if runtime_name == "docker":
            await asyncio.to_thread(remove_containers, server)
        else:
            await asyncio.to_thread(kill_bubblewrap)

    return lose


async def begin(client: Client, code: str, request_id: str = "cell", **more: object) -> None:
    """Send a cell and return when its first line has run."""
    await client.shell("cd; rm -f begun; mkfifo begun")
    code = f"open('begun', 'w').close()\n{code}"
    await client.send(type="execute_code", sessionId="s", code=code, requestId=request_id, **more)
    assert (await client.shell("cat begun"))["exitCode"] == 0


async def status_with(client: Client, cause: str) -> Frame:
    """Give the next `session_status` with this cause; what comes before it is forgotten."""
    while True:
        frame = await client.receive()
        if frame["type"] == "session_status" and frame.get("cause") == cause:
            return frame


@pytest.fixture(scope="session")
def engine_home(workspace_image: str) -> Iterator[Path]:
    """Make the home of private engines that have the workspace image, which costs ten seconds; one runs at a time."""
    with home_with_image(workspace_image) as home:
        yield home
