"""Opening a session that is paused: who asks is there while it is resumed."""

import asyncio
import io
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelbridge.errors import KernelBridgeError, SandboxError
from kernelbridge.identity.principal import Principal
from kernelbridge.protocol.sessions import OpenSession
from kernelbridge.server.websocket.handlers.request_context import Client, RequestContext
from kernelbridge.server.websocket.handlers.sessions import _opened, open_session
from kernelbridge.workspace.session_key import SessionKey
from tests.unit.server.conftest import RunningServer, StartServer


class UnresumableSessions:
    """A registry whose sessions are paused and cannot be resumed."""

    def __init__(self) -> None:
        self.connections: set[str] = set()
        self.there_meanwhile: set[str] = set()

    def find(self, _key: SessionKey) -> Any:
        return SimpleNamespace(pausing=SimpleNamespace(asleep=True, awake=self._awake))

    def attach(self, _key: SessionKey, connection_id: str) -> None:
        self.connections.add(connection_id)

    async def _awake(self) -> None:
        await asyncio.sleep(0)
        self.there_meanwhile |= self.connections
        raise SandboxError("The session cannot be resumed", "its sandbox is broken")


async def test_who_opens_a_paused_session_uses_it_from_then_on() -> None:
    """Else it could end meanwhile, because nobody was there for `linger`, and be opened anew."""
    registry = UnresumableSessions()
    client = cast("Client", SimpleNamespace(id="c", principal=Principal("u"), registry=registry))
    with pytest.raises(SandboxError):
        await open_session(client, OpenSession(session_id="s"), [])
    assert registry.there_meanwhile == {"c"}


def test_a_session_whose_kernel_does_not_start_is_answered_once() -> None:
    told: list[KernelBridgeError] = []
    error = SandboxError("No sandbox", "none left")
    _opened(cast("RequestContext", SimpleNamespace(fail=told.append)), fresh=True, error=error)
    assert told == [error]


MIB = 1 << 20
FILE = "/api/sessions/s/files/large"
WRITES = """if 1:
    import time
    file = open('more', 'wb')
    while True:
        file.write(bytes(1 << 16))
        time.sleep(0.01)
"""


@pytest.mark.asyncio(loop_scope="module")
async def test_a_session_that_asks_for_less_disk_has_less_while_it_is_open(server: RunningServer) -> None:
    async def put(size: int) -> int:
        address = f"{server.origin}{FILE}?user_id=modest"
        async with server.http.put(address, data=io.BytesIO(b"x" * size)) as answer:
            return answer.status

    async with server.connect("modest") as client:
        more = await client.ask(type="open_session", sessionId="s", limits={"disk": 1 << 40})
        assert (more["code"], "limits.disk" in more["message"]) == ("invalid_field", True)
        assert "2147483648 bytes (2g), the limits of the server" in more["error"]
        ready = await client.ask(type="open_session", sessionId="s", limits={"disk": 4 * MIB})
        assert ready["limits"]["disk"] == 4 * MIB
        assert (await client.ask(type="session_info", sessionId="s"))["disk"]["limit"] == 4 * MIB
        refused = await client.ask(type="save_file", sessionId="s", filename="f", content="x" * 5 * MIB)
        assert (refused["code"], "of 4.0 MiB of disk" in refused["message"]) == ("disk_limit", True)
        assert await put(5 * MIB) == 507
        assert (await client.ask(type="save_file", sessionId="s", filename="f", content="x" * MIB))["success"]
        await client.send(type="execute_code", sessionId="s", code=WRITES, requestId="w")
        stopped = await client.answer_to("w")
        assert (stopped["cause"], "of 4.0 MiB of disk" in stopped["hint"]) == ("disk_limit", True)
        conflict = await client.ask(type="open_session", sessionId="s", limits={"disk": 5 * MIB})
        assert conflict["code"] == "session_conflict"
        await client.send(type="close_session", sessionId="s")
        await client.until(type="close_session_reply")
        assert await put(5 * MIB) in {200, 201}, "the next life of the session has what others have"
        await client.send(type="execute_code", sessionId="s", code="1", requestId="1")
        assert (await client.answer_to("1"))["success"]
        assert (await client.ask(type="session_info", sessionId="s"))["disk"]["limit"] == 2 << 30


async def test_a_user_stores_so_many_sessions_and_then_deletes_one(start_server: StartServer) -> None:
    server = await start_server(max_stored_sessions_per_user="2")

    async def put(session: str) -> tuple[int, str]:
        address = f"{server.origin}/api/sessions/{session}/files/f?user_id=hoarder"
        async with server.http.put(address, data=b"x") as answer:
            return answer.status, await answer.text()

    async with server.connect("hoarder") as client, server.connect("another") as other:
        assert (await put("by-http"))[0] == 201
        assert (await client.ask(type="save_file", sessionId="saved", filename="f", content="x"))["success"]
        for type_ in ("list_files", "open_session"):
            refused = await client.ask(type=type_, sessionId="third")
            assert refused["code"] == "limit_exceeded"
            assert "close_session with deleteFiles" in json.dumps(refused)
        status, text = await put("third")
        assert (status, "close_session with deleteFiles" in text) == (429, True)
        assert (await put("by-http"))[0] == 200, "those that exist can be used"
        assert (await other.ask(type="save_file", sessionId="third", filename="f", content="x"))["success"]
        assert (await client.ask(type="close_session", sessionId="by-http", deleteFiles=True))["filesDeleted"]
        assert (await put("third"))[0] == 201
