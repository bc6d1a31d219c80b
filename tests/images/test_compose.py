"""The server in a container, as docker-compose.yml starts it, running a cell in a workspace beside it."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from docker import DockerClient, from_env

from kernelbridge.images.build import KNOWN, ensure_image

CHECKOUT = Path(__file__).parents[2]
SERVER = KNOWN["server"].reference
HEALTHY_WITHIN = 90
"""Seconds; the compose file probes every five."""
PATIENCE = 60.0

LABEL = "kernelbridge.instance"


@dataclass(frozen=True)
class Project:
    """A compose project that nobody else has."""

    name: str
    port: int
    data: Path
    image: str

    def compose(self, *arguments: str) -> str:
        program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
        run = subprocess.run(
            [*program, "--project-name", self.name, "--file", str(CHECKOUT / "docker-compose.yml"), *arguments],
            env={
                **os.environ,
                "KERNELBRIDGE_PORT": str(self.port),
                "KERNELBRIDGE_DATA_DIR": str(self.data),
                "SERVER_IMAGE": SERVER,
                "KERNELBRIDGE_IMAGE": self.image,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout
        return run.stdout


@pytest.fixture(scope="module")
def client() -> Iterator[DockerClient]:
    client = from_env()
    yield client
    client.close()


@pytest.fixture
def project(client: DockerClient, workspace_image: str) -> Iterator[Project]:
    ensure_image(SERVER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not pytest's own directory: the paths of UNIX sockets are short.
    home = Path(tempfile.mkdtemp(prefix="kb-compose-", dir="/tmp"))
    project = Project(home.name, port, home / "data", workspace_image)
    try:
        yield project
    finally:
        project.compose("down", "--volumes", "--timeout", "30")
        # By a container, because what a root server made is not always ours to remove.
        client.containers.run(
            workspace_image,
            ["rm", "-rf", "/home-of-test/data"],
            user="0:0",
            network_mode="none",
            volumes={str(home): {"bind": "/home-of-test", "mode": "rw"}},
            remove=True,
        )
        home.rmdir()


def wait_until_healthy(client: DockerClient, project: Project, since: int) -> None:
    events = client.events(
        since=since,
        until=since + HEALTHY_WITHIN,
        filters={"label": f"com.docker.compose.project={project.name}", "type": "container"},
        decode=True,
    )
    seen = []
    for event in events:
        seen.append(event["Action"])
        if event["Action"] == "health_status: healthy":
            events.close()
            return
    pytest.fail(f"not healthy within {HEALTHY_WITHIN} s: {seen}\n{project.compose('logs')}")


async def cell(ws: aiohttp.ClientWebSocketResponse, code: str) -> dict[str, Any]:
    await ws.send_json({"type": "execute_code", "sessionId": "composed", "code": code, "filename": "main.py"})
    while True:
        frame: dict[str, Any] = json.loads(await ws.receive_str(timeout=PATIENCE))
        if frame["type"] in {"execution_result", "error"}:
            return frame


async def test_a_composed_server_runs_a_cell_and_leaves_nothing(client: DockerClient, project: Project) -> None:
    since = int(time.time())
    await asyncio.to_thread(project.compose, "up", "--detach", "--no-build")
    await asyncio.to_thread(wait_until_healthy, client, project, since)
    instance = client.containers.run(
        SERVER,
        ["-c", f"print(open({str(project.data / 'instance')!r}).read().strip())"],
        entrypoint="python3",
        volumes={str(project.data): {"bind": str(project.data), "mode": "ro"}},
        network_mode="none",
        remove=True,
    )
    workspaces: dict[str, str | list[str] | bool] = {"label": f"{LABEL}={instance.decode().strip()}"}

    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"ws://127.0.0.1:{project.port}/ws?user_id=compose") as ws,
    ):
        assert (await ws.receive_json(timeout=PATIENCE))["type"] == "connected"
        first = await cell(ws, "open('kept.txt', 'w').write('x' * 10); import os; print(os.getuid(), os.getcwd())")
        assert first["success"], first
        uid, where = first["output"].splitlines()[-1].split()
        assert int(uid) >= 1000  # the session's own
        assert where == "/workspace"
        second = await cell(ws, "print(open('kept.txt').read())")
        assert second["output"] == "x" * 10 + "\n"
        # Beside the server, not inside it: the workspace is a container of the same engine.
        assert len(client.containers.list(filters=workspaces)) == 1

    await asyncio.to_thread(project.compose, "down", "--timeout", "30")
    assert client.containers.list(all=True, filters=workspaces) == []
    assert client.containers.list(all=True, filters={"label": f"com.docker.compose.project={project.name}"}) == []


def test_compose_accepts_the_file(project: Project) -> None:
    config = project.compose("config")
    # The setting, and both sides of the mount.
    assert config.count(str(project.data)) == 3
    assert "KERNELBRIDGE_HOST: 127.0.0.1" in config
