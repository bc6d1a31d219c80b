"""A server, its users and what goes wrong with it, for tests that drive all of them step by step."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import docker

from kernelbridge.identity.principal import Principal
from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL
from kernelbridge.server.app import running
from kernelbridge.settings.settings import resolve
from kernelbridge.workspace.session_key import SessionKey

T = TypeVar("T")
Frame = dict[str, Any]

PATIENCE = 120.0
"""Seconds after which something that should have happened is taken as never happening."""


class ConnectionClosedError(Exception):
    """The server has closed a connection."""


@dataclass(eq=False)
class Guest:
    """One connection of a user, and what it waits for."""

    user: str
    ws: aiohttp.ClientWebSocketResponse
    pending: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The session and type of each request that is not answered, by requestId."""
    follows: set[str] = field(default_factory=set)
    """The sessions that it has resumed."""


class House:
    """A real server in this process, restarted at will; its clients and its sandboxes."""

    def __init__(self, runtime: str, image: str, data_dir: Path, **flags: str) -> None:
        self.runtime = runtime
        self._runner = asyncio.Runner()
        self.failure: Exception | None = None
        """The first: what runs go on to do after it, in other ways each time, says little."""
        self._complaints: list[object] = []
        self._runner.get_loop().set_exception_handler(lambda _loop, context: self._complaints.append(context))
        self._flags = {
            "runtime": runtime,
            "port": "0",
            "data_dir": str(data_dir),
            "image": image,
            "stop_timeout": "0",
            **flags,
        }
        self._data_dir = data_dir
        self._context: Any = None
        self._http: aiohttp.ClientSession | None = None
        self._at_rest: set[asyncio.Task[Any]] = set()
        self.url = ""

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something to its end, in bounded time. After a failure there is no more to do than to report it."""

        async def bounded() -> T:
            async with asyncio.timeout(PATIENCE):
                return await work

        try:
            return self._runner.run(bounded())
        except Exception as exc:
            self.failure = self.failure or exc
            raise

    async def start(self) -> None:
        """Start the server."""
        context = running(resolve(self._flags, {}), on_progress=lambda _line: None)
        report = await context.__aenter__()
        self._context, self.url = context, report.url
        if self._http is not None:
            await self._http.close()
        self._http = aiohttp.ClientSession()
        self._at_rest = asyncio.all_tasks()

    async def stop(self) -> None:
        """Stop the server in order, without a client."""
        if self._http is not None:
            await self._http.close()
        await self.stop_server()

    async def stop_server(self) -> None:
        """Stop the server in order, whoever is connected."""
        if self._context is not None:
            await self._context.__aexit__(None, None, None)
        self._context = None

    def close(self) -> None:
        """Stop it and release the loop."""
        self.do(self.stop())
        self._runner.close()

    async def connect(self, user: str) -> Guest:
        """Let a user in."""
        assert self._http is not None
        ws = await self._http.ws_connect(f"{self.url}?user_id={user}", max_msg_size=0)
        assert (await ws.receive_json())["type"] == "connected"
        return Guest(user, ws)

    # -- what goes wrong ---------------------------------------------------------

    def processes(self, user: str, session: str) -> Iterator[tuple[int, str]]:
        """Give the processes of a session's sandbox, as the host numbers them, with their command lines."""
        home = self.files(user, session)
        with contextlib.suppress(FileNotFoundError):
            found = home.stat()
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit() or int(entry.name) == os.getpid():
                    continue
                with contextlib.suppress(OSError):
                    inside = (entry / "root" / "workspace").stat()
                    if (inside.st_dev, inside.st_ino) == (found.st_dev, found.st_ino):
                        yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()

    def kill(self, user: str, session: str, what: str) -> int:
        """SIGKILL those of a session's processes with `what` in their command line; give how many."""
        killed = 0
        for pid, line in list(self.processes(user, session)):
            if what in line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        return killed

    def files(self, user: str, session: str) -> Path:
        """Give the directory of a session's files."""
        key = SessionKey(Principal(user), session)
        return self._data_dir / "workspaces" / key.workspace_id / "files"

    # -- what is left ------------------------------------------------------------

    async def nothing_left(self) -> None:
        """Wait for the end of every task that came after the start; nothing may be left of any session then."""
        while over := asyncio.all_tasks() - self._at_rest - {asyncio.current_task()}:
            await asyncio.wait(over)
        gc.collect()  # that is when a task complains of a failure that nobody has looked at
        assert not self._complaints, self._complaints
        left = [path for name in ("run", "state") for path in (self._data_dir / name).iterdir()]
        assert not left, left
        containers = self.containers()
        assert not containers, containers

    def containers(self) -> list[str]:
        """Give the names of the server's containers."""
        if self.runtime != "docker":
            return []
        instance = (self._data_dir / "instance").read_text(encoding="ascii").strip()
        with contextlib.closing(docker.from_env()) as engine:
            found = engine.api.containers(all=True, filters={"label": f"{INSTANCE_LABEL}={instance}"})
            return [name for row in found for name in row["Names"]]


def resources() -> tuple[int, int]:
    """Give how many descriptors and threads this process has."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


async def next_frame(guest: Guest) -> Frame:
    """Give the next frame. Raises `ConnectionClosedError`."""
    message = await guest.ws.receive()
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise ConnectionClosedError(f"{message}, while these wait: {guest.pending}")
    frame = json.loads(message.data)
    assert isinstance(frame, dict)
    return frame


H = TypeVar("H", bound=House)


@contextlib.contextmanager
def inhabited(house: H) -> Iterator[H]:
    """Have a house's server started, and stopped in the end."""
    house.do(house.start())
    with contextlib.closing(house):
        yield house
