import asyncio
import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelbridge.server.websocket.heartbeat import _INFO, Heartbeat, Patience


def asked_for(patience: Patience, silent: float) -> float | None:
    """Return the seconds since it was first asked, if that was done as soon as it was due."""
    return silent - patience.ping if silent >= patience.ping else None


def test_a_silent_client_is_asked_every_30_seconds_and_dropped_after_90() -> None:
    patience, silent = Patience(), 0.0
    looks = []
    while silent < patience.drop:
        silent += patience.next_check(silent, asked_for(patience, silent))
        looks.append(round(silent))
    assert looks == [30, 60, 90]


def test_a_look_never_comes_early_nor_turns_in_circles() -> None:
    for ping, drop in itertools.product((0.2, 1.0, 30.0), (0.6, 7.0, 90.0)):
        patience = Patience(ping, drop)
        silent, looks = 0.0, 0
        while silent < drop:
            wait = patience.next_check(silent, asked_for(patience, silent))
            assert wait > 0
            silent, looks = silent + wait, looks + 1
        assert looks <= drop / ping + 1
        assert silent <= drop + 0.02


def test_a_client_that_was_asked_late_has_its_full_time_to_answer() -> None:
    patience = Patience(ping=30, drop=90)
    assert patience.remaining(silent=3600, asked=None) == 60
    assert patience.remaining(silent=3600, asked=0.0) == 60
    assert patience.remaining(silent=3650, asked=50.0) == 10
    assert patience.remaining(silent=89, asked=59.0) == 1


class FrozenClient:
    """The transport to a client that sends nothing, while its operating system acknowledges what arrives."""

    def __init__(self, *, heard: int) -> None:
        self.heard, self.acked_ago, self.acked = heard, heard, 1
        """The first two in milliseconds."""
        self.unwritten = 0

    def get_extra_info(self, _name: str) -> "FrozenClient":
        return self

    def getsockopt(self, *_which: int) -> bytes:
        return _INFO.pack(self.heard, self.acked_ago, self.acked)

    def get_write_buffer_size(self) -> int:
        return self.unwritten


async def no_ping() -> None:
    raise AssertionError


@pytest.fixture
async def frozen() -> tuple[FrozenClient, Heartbeat]:
    client = FrozenClient(heard=95_000)
    heartbeat = Heartbeat(cast("asyncio.Transport", client), Patience(), ping=no_ping)
    heartbeat._read_at -= 1000
    return client, heartbeat


async def test_a_system_that_acknowledges_a_ping_does_not_speak_for_its_client(
    frozen: tuple[FrozenClient, Heartbeat],
) -> None:
    client, heartbeat = frozen
    for _ in range(3):
        client.acked, client.acked_ago = client.acked + 2, 10
        assert heartbeat._silence() == 95


async def test_a_client_that_takes_what_it_had_no_room_for_is_there(frozen: tuple[FrozenClient, Heartbeat]) -> None:
    client, heartbeat = frozen
    client.unwritten = 1
    assert heartbeat._silence() == 95
    assert heartbeat._silence() == 95  # it has taken nothing yet
    client.acked, client.acked_ago = client.acked + 1, 10
    assert heartbeat._silence() < 1


async def test_nobody_is_asked_after_the_end_of_the_connection() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def blocked() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    transport = cast("asyncio.Transport", SimpleNamespace(is_closing=lambda: False))
    heartbeat = Heartbeat(transport, Patience(0.01, 90.0), ping=blocked, heard_ago=lambda: 1.0)
    with heartbeat:
        await asyncio.wait_for(began.wait(), 60)
    await asyncio.wait_for(ended.wait(), 60)
    assert heartbeat._timer is not None
    assert heartbeat._timer.cancelled()


async def test_a_connection_that_closes_is_not_looked_at() -> None:
    transport = cast("asyncio.Transport", SimpleNamespace(is_closing=lambda: True))
    heartbeat = Heartbeat(transport, Patience(0.0, 0.0), ping=no_ping, heard_ago=lambda: 1000.0)
    heartbeat._check()
    assert (heartbeat._asking, heartbeat._timer) == (None, None)


async def test_a_client_that_has_sent_something_since_it_was_asked_is_kept() -> None:
    aborted: list[bool] = []
    transport = SimpleNamespace(is_closing=lambda: False, abort=lambda: aborted.append(True))
    silent = 1000.0

    async def ping() -> None:
        raise ConnectionError

    heartbeat = Heartbeat(cast("Any", transport), Patience(), ping=ping, heard_ago=lambda: silent)
    with heartbeat:
        heartbeat._asked_at = heartbeat._loop.time() - 50
        silent = 40.0
        heartbeat._check()
        assert aborted == []
        heartbeat._asked_at = heartbeat._loop.time() - 70
        silent = 100.0
        heartbeat._check()
        assert aborted == [True]
        await asyncio.sleep(0)
