"""Opening a session that is paused: who asks is there while it is resumed."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.identity.principal import Principal
from kernelbridge.protocol.sessions import OpenSession
from kernelbridge.server.websocket.handlers.request_context import Client
from kernelbridge.server.websocket.handlers.sessions import open_session
from kernelbridge.workspace.session_key import SessionKey


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
