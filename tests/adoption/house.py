"""Servers in processes of their own, that are killed or stopped, over data directories that stay."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import docker
import pytest

from kernelbridge.identity.principal import Principal
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL, WORKSPACE_LABEL
from kernelbridge.runtimes.local.notes import Notes
from kernelbridge.runtimes.local.pidfd import Identity
from kernelbridge.runtimes.local.runtime import LocalRuntime
from kernelbridge.workspace.session_key import SessionKey
from tests.integration.conftest import PATIENCE, Client, Frame

ROOT = Path(__file__).parents[2]

docker_only = pytest.mark.parametrize("house", ["docker"], indirect=True)
"""For a test of what only an engine or an image does."""


class Server:
    """One `kernelbridge serve`."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    async def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        """SIGTERM it, and see that it ends in order."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await self.process.wait() == 0, self.log.read_text()


class House:
    """One data directory, and the servers that follow each other over it."""

    def __init__(self, runtime: str, image: str, data_dir: Path, http: aiohttp.ClientSession) -> None:
        self.runtime = runtime
        self.data_dir = data_dir
        self._image = image
        self._http = http
        self._servers: list[Server] = []

    async def serve(self, *flags: str, linger: str = "60s", program: str = "", **environ: str) -> Server:
        """Start a server, with a `program` of its own if need be, and wait until it listens."""
        server = await self._launch(*flags, "--linger", linger, program=program, **environ)
        async with asyncio.timeout(PATIENCE):
            while not server.url:
                assert server.process.returncode is None, server.log.read_text()
                for line in server.log.read_text().splitlines():
                    with contextlib.suppress(ValueError):
                        said_so = json.loads(line)
                        if said_so.get("event") == "started":
                            server.url = said_so["url"]
                await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.02)  # a file tells nobody
        return server

    async def cannot_serve(self, *flags: str, seconds: float = PATIENCE, **environ: str) -> str:
        """Start a server that ends by itself, and not in order, within some time; give what it said."""
        server = await self._launch(*flags, **environ)
        async with asyncio.timeout(seconds):
            assert await server.process.wait() == 1, server.log.read_text()
        return server.log.read_text()

    async def _launch(self, *flags: str, program: str = "", **environ: str) -> Server:
        log = self.data_dir.with_name(f"{self.data_dir.name}-{len(self._servers)}.log")
        python = [sys.executable, *(["-c", program] if program else ["-m", "kernelbridge"])]
        command = [*python, "serve", "--port", "0", "--log-format", "json"]
        command += ["--runtime", self.runtime, "--image", self._image, "--data-dir", str(self.data_dir), *flags]
        mine = {name: value for name, value in os.environ.items() if not name.startswith("KERNELBRIDGE_")}
        with log.open("wb") as said:
            process = await asyncio.create_subprocess_exec(
                *command, stderr=said, stdout=said, env={**mine, "PYTHONPATH": str(ROOT), **environ}
            )
        server = Server(process, "", log)
        self._servers.append(server)
        return server

    @asynccontextmanager
    async def connect(self, server: Server, user: str = "u", *, streams: bool = False) -> AsyncIterator[Client]:
        """Let a user in."""
        query = f"?user_id={user}" + ("&stream=true" if streams else "")
        async with self._http.ws_connect(server.url + query, max_msg_size=0) as ws:
            client = Client(ws, {})
            client.connected = await client.receive()
            yield client

    def files(self, session: str, user: str = "u") -> Path:
        """Give the directory of a session's files."""
        return self.data_dir / "workspaces" / SessionKey(Principal(user), session).workspace_id / "files"

    def state(self, session: str, user: str = "u") -> Path:
        """Give the file in which a session is noted."""
        return self.data_dir / "state" / f"{SessionKey(Principal(user), session).workspace_id}.json"

    @property
    def instance(self) -> str:
        """The label of its containers."""
        return (self.data_dir / "instance").read_text(encoding="ascii").strip()

    def containers(self, session: str | None = None, user: str = "u", *, ended: bool = True) -> list[str]:
        """Return the ids of its containers, those that have ended included."""
        labels = [f"{INSTANCE_LABEL}={self.instance}"]
        if session is not None:
            labels.append(f"{WORKSPACE_LABEL}={SessionKey(Principal(user), session).workspace_id}")
        with engine() as api:
            return [row["Id"] for row in api.containers(all=ended, filters={"label": labels})]

    def agent(self) -> int:
        """Give the pid of the agent in its only container."""
        (container,) = self.containers()
        with engine() as api:
            return int(api.inspect_container(container)["State"]["Pid"])

    def sandboxes(self, session: str | None = None, user: str = "u") -> list[str]:
        """Give the ids of its sandboxes that run, whichever runtime made them."""
        if self.runtime == "docker":
            return self.containers(session, user, ended=False)
        return [
            note.id
            for note in self._notes.read()
            if (session is None or note.workspace_id == SessionKey(Principal(user), session).workspace_id)
            and Identity.of(note.agent.pid) == note.agent
        ]

    def destroy(self, sandbox: str) -> None:
        """End a sandbox behind its server's back."""
        if self.runtime == "docker":
            with engine() as api:
                api.remove_container(sandbox, force=True)
            return
        [note] = [note for note in self._notes.read() if note.id == sandbox]
        os.kill(note.agent.pid, signal.SIGKILL)

    @property
    def _notes(self) -> Notes:
        return Notes(self.data_dir / "local" / "sandboxes")

    def left(self) -> list[str]:
        """Name what is left of sessions but their files."""
        found = [
            f"{path.parent.name}/{path.name}" for name in ("run", "state") for path in (self.data_dir / name).iterdir()
        ]
        found += [note.id for note in self._notes.read()]
        found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/kernelbridge/{self.instance}/*/")]
        return found + (self.containers() if self.runtime == "docker" else [])

    async def until_nothing_is_left(self) -> None:
        """Wait for the end of every session."""
        async with asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(self.left):
                await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.1)  # nobody tells

    async def close(self) -> None:
        """End what runs, and what it left; print what the servers said, which is shown if the test fails."""
        for number, server in enumerate(self._servers):
            print(f"-- server {number} --\n{server.log.read_text()}")
        for server in self._servers:
            if server.process.returncode is None:
                await server.kill()
        if not (self.data_dir / "instance").exists():
            return
        if list(self._notes.read()):
            directories = HostDirectories(self.data_dir)
            local = await asyncio.to_thread(LocalRuntime, instance=self.instance, directories=directories)
            await local.reclaim()
            await local.aclose()
        if self.runtime == "docker":
            with engine() as api:
                for container in self.containers():
                    api.remove_container(container, force=True, v=True)


@contextlib.contextmanager
def engine() -> Any:
    """Give the engine itself."""
    client = docker.from_env(version="auto")
    try:
        yield client.api
    finally:
        client.close()


@asynccontextmanager
async def house(runtime: str, image: str) -> AsyncIterator[House]:
    """Give a house of its own, of which nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="kb-") as home:
        async with aiohttp.ClientSession() as http:
            made = House(runtime, image, Path(home) / "data", http)
            try:
                yield made
            finally:
                await made.close()


async def result(client: Client, request_id: str) -> Frame:
    """Give the `execution_result` of a request."""
    while True:
        frame = await client.receive()
        if frame["type"] == "execution_result" and frame.get("requestId") == request_id:
            return frame


async def resume(client: Client, session: str = "s", after: int = 0) -> Frame:
    """Follow a session, and give `resumed`."""
    await client.send(type="resume", sessionId=session, after=after, requestId="resume")
    return await client.answer_to("resume")


async def begin(client: Client, code: str, request_id: str, *, session: str = "s", **more: object) -> None:
    """Send a cell and return when its first line has run; its output comes behind that."""
    # By name: the next frame may tell of the session's start, and the cell must not come before the FIFO.
    await client.send(type="terminal_command", sessionId=session, command="rm -f begun; mkfifo begun", requestId="fifo")
    assert (await client.answer_to("fifo"))["exitCode"] == 0
    code = f"open('begun', 'w').close()\n{code}"
    await client.send(type="execute_code", sessionId=session, code=code, requestId=request_id, **more)
    await client.send(type="terminal_command", sessionId=session, command="cat begun", requestId="begun")
    assert (await client.answer_to("begun"))["exitCode"] == 0


def until(file: str) -> str:
    """Give code that waits for a file."""
    return f"import os, time\nwhile not os.path.exists({file!r}): time.sleep(0.02)"


def touch(files: Path, name: str) -> None:
    """Make a file that a cell waits for."""
    (files / name).touch()


async def until_there(path: Path) -> None:
    """Wait until a cell has made a file."""
    async with asyncio.timeout(PATIENCE):
        while not path.exists():  # noqa: ASYNC110 - the file system tells nobody
            await asyncio.sleep(0.02)


async def until_begun(client: Client, path: Path) -> None:
    """Wait until a command has made a file, and its server has noted that it began.

    What a server has read and not yet noted when it is killed is lost with it.
    """
    await until_there(path)
    await client.send(type="ping", requestId="noted")
    await client.answer_to("noted")
