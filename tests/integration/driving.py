"""A client as small as the page allows, and the server that it speaks to."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
"""Headers of what is a request for a WebSocket."""

PATIENCE = 120.0
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
