"""A real server on a free port, over each runtime, and a client as small as the page allows."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernelbridge.config import Settings, resolve
from kernelbridge.server.app import running
from kernelbridge.server.pulse import Patience
from tests.docker.faulty_engine import CuttableWire, cuttable_wire

PATIENCE = 60.0
"""Seconds that a test waits for a frame before it fails."""

Frame = dict[str, Any]


@dataclass
class Client:
    """One WebSocket; remembers frames that nobody asked for yet."""

    ws: aiohttp.ClientWebSocketResponse
    connected: Frame
    frames: list[Frame] = field(default_factory=list)

    async def send(self, **message: object) -> None:
        await self.ws.send_str(json.dumps(message))

    async def receive(self) -> Frame:
        """Give the next frame."""
        if self.frames:
            return self.frames.pop(0)
        return await self._read()

    async def ask(self, **message: object) -> Frame:
        """Send and give the next frame: for one request at a time."""
        await self.send(**message)
        return await self.receive()

    async def answer_to(self, request_id: str) -> Frame:
        """Give the frame with this requestId; others wait their turn."""
        for frame in self.frames:
            if frame.get("requestId") == request_id:
                self.frames.remove(frame)
                return frame
        while (frame := await self._read()).get("requestId") != request_id:
            self.frames.append(frame)
        return frame

    async def run(self, code: str, *, session: str = "s", **more: object) -> Frame:
        """Execute a cell and give its answer."""
        return await self.ask(type="execute_code", sessionId=session, code=code, **more)

    async def shell(self, command: str, *, session: str = "s", **more: object) -> Frame:
        """Run a terminal command and give its answer."""
        return await self.ask(type="terminal_command", sessionId=session, command=command, **more)

    async def _read(self) -> Frame:
        message = await asyncio.wait_for(self.ws.receive(), PATIENCE)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        frame = json.loads(message.data)
        assert isinstance(frame, dict)
        return frame


@dataclass
class RunningServer:
    """Where it listens and how to connect."""

    url: str
    data_dir: Path
    runtime: str
    http: aiohttp.ClientSession

    @asynccontextmanager
    async def connect(self, user_id: str | None = None, **options: Any) -> AsyncIterator[Client]:
        query = "" if user_id is None else f"?user_id={user_id}"
        async with self.http.ws_connect(self.url + query, max_msg_size=0, **options) as ws:
            client = Client(ws, {})
            client.connected = await client.receive()
            yield client


StartServer = Callable[..., Awaitable[RunningServer]]


@pytest.fixture(params=["docker", "local"])
def runtime_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def engine_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CuttableWire]:
    """Put a wire that can be cut between the server and its engine."""
    async with cuttable_wire(tmp_path / "engine.sock") as wire:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{wire.path}")
        yield wire


@pytest.fixture
async def start_server(runtime_name: str, tmp_path: Path, workspace_image: str) -> AsyncIterator[StartServer]:
    """Start servers with flags of the test's choice; all are stopped in order at the end."""
    stops: list[Callable[[], Awaitable[object]]] = []

    async def start(patience: Patience = Patience(), **flags: str | bool) -> RunningServer:  # noqa: B008 - frozen
        settings: Settings = resolve(
            {
                "runtime": runtime_name,
                "port": "0",
                "data_dir": str(tmp_path / "data"),
                "image": workspace_image,
                "linger": "0",
                "stop_timeout": "0",
                **flags,
            },
            {},
        )
        context = running(settings, on_progress=lambda _line: None, patience=patience)
        report = await context.__aenter__()
        stops.append(lambda: context.__aexit__(None, None, None))
        http = aiohttp.ClientSession()
        stops.append(http.close)
        return RunningServer(report.url, settings.data_dir, runtime_name, http)

    yield start
    for stop in reversed(stops):
        await stop()


@pytest.fixture
async def server(start_server: StartServer) -> RunningServer:
    return await start_server()


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[Client]:
    async with server.connect("tester") as client:
        yield client
