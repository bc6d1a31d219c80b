"""Who may read from a client's connection again: both aiohttp and the server must have room."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelbridge.server.websocket.tcp import TcpConnection


class Transport:
    """Says whether it reads."""

    reads = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


@pytest.mark.parametrize("full", [True, False])
def test_the_server_has_room_again_and_aiohttp_may_have_none(*, full: bool) -> None:
    transport = Transport()
    connection: Any = SimpleNamespace(
        transport=transport, _reading_paused_by_flow=full, _pause_transport=transport.pause_reading
    )
    TcpConnection.hold_back(cast("TcpConnection", connection), True)  # noqa: FBT003 - its only argument
    assert not transport.reads
    TcpConnection.hold_back(cast("TcpConnection", connection), False)  # noqa: FBT003
    assert transport.reads is not full
    connection.transport = None
    TcpConnection.hold_back(cast("TcpConnection", connection), False)  # noqa: FBT003 - the client is gone
