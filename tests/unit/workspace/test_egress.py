"""The way out of one session: what is reported about refusals, and how many connections there may be."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from kernelbridge.egress.dialling import Dialler, is_own_address
from kernelbridge.egress.policy import Policies
from kernelbridge.egress.proxy import CONNECTIONS
from kernelbridge.identity.principal import Principal
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace import egress as module
from kernelbridge.workspace.denials import Denials
from kernelbridge.workspace.egress import Egress, SessionEgress
from kernelbridge.workspace.hints import NETWORK_HINT, TERMINAL_HINT
from kernelbridge.workspace.session_key import SessionKey
from tests.unit.egress.hosts_of_the_test import PATIENCE, NamesOfTheTest, read_all


class RelayingSandbox:
    """A sandbox, as far as a way out uses it."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.more = asyncio.Event()
        self._accept: Callable[[int], None]

    def relay(self, accept: Callable[[int], None], count: int) -> None:
        self._accept = accept
        self.asked.append(count)
        if len(self.asked) > 1:
            self.more.set()

    async def ask(self, authority: str) -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        with ours:
            ours.settimeout(0)
            self._accept(theirs.detach())
            await asyncio.get_running_loop().sock_sendall(ours, f"CONNECT {authority} HTTP/1.1\r\n\r\n".encode())
            async with asyncio.timeout(PATIENCE):
                return await read_all(ours)


class Way:
    def __init__(self) -> None:
        self.reported: list[dict[str, Any]] = []
        self.logged: list[str] = []
        self.denials = Denials()
        egress = Egress(
            Policies("none"),
            Dialler(NamesOfTheTest(), is_own_address),
            on_access=lambda key, access: self.logged.append(f"{key.session_id} {access.outcome} {access.host}"),
        )
        self.out = SessionEgress(
            SessionKey(Principal("ada"), "s"),
            egress,
            level=lambda: None,
            denials=self.denials,
            report=lambda **event: self.reported.append(event),
        )
        self.sandbox = RelayingSandbox()
        self.out.began(cast("Sandbox", self.sandbox))


@pytest.fixture
async def way() -> AsyncIterator[Way]:
    made = Way()
    yield made
    await made.out.aclose()


async def test_retries_of_one_host_are_one_event_and_each_is_logged(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        assert b"403" in await way.sandbox.ask("a.example:443")
    await way.sandbox.ask("a.example:444")
    assert [(event["host"], event["port"], event["reason"]) for event in way.reported] == [
        ("a.example", 443, "host"),
        ("a.example", 444, "host"),
    ]
    assert way.logged == ["s denied a.example"] * 4
    monkeypatch.setattr(module, "EVENTS_SECONDS", -1.0)
    await way.sandbox.ask("a.example:443")
    assert len(way.reported) == 3


async def test_a_program_that_tries_everything_does_not_flood_the_client(way: Way) -> None:
    for number in range(module.MOST_EVENTS + 5):
        await way.sandbox.ask(f"h{number}.example:443")
    assert len(way.reported) == module.MOST_EVENTS
    assert len(way.logged) == module.MOST_EVENTS + 5


async def test_each_connection_that_ends_makes_room_for_one(way: Way) -> None:
    assert way.sandbox.asked == [CONNECTIONS]
    await way.sandbox.ask("a.example:443")
    async with asyncio.timeout(PATIENCE):
        await way.sandbox.more.wait()
    assert way.sandbox.asked == [CONNECTIONS, 1]


async def test_another_sandbox_ends_the_connections_of_the_one_before(way: Way) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours:
        ours.settimeout(0)
        way.sandbox._accept(theirs.detach())
        way.out.began(cast("Sandbox", RelayingSandbox()))
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionResetError):
                assert await read_all(ours) == b""


async def test_a_connection_that_comes_after_the_end_is_closed(way: Way) -> None:
    await way.out.aclose()
    read, write = os.pipe()
    way.sandbox._accept(write)
    assert os.read(read, 1) == b""
    os.close(read)


def test_the_hint_names_the_refusals_of_the_run() -> None:
    denials = Denials()
    denials.add("before")
    before = denials.mark()
    assert denials.hint(before, None) is None
    for sentence in ("one", "two", "one"):
        denials.add(sentence)
    assert denials.hint(before, None) == "two\none"
    assert denials.hint(before, NETWORK_HINT) == "two\none"
    assert denials.hint(before, TERMINAL_HINT) == TERMINAL_HINT
    assert denials.hint(denials.mark(), NETWORK_HINT) == NETWORK_HINT


def test_of_many_refusals_the_hint_names_the_first_and_the_latest() -> None:
    denials = Denials()
    for number in range(9):
        denials.add(f"host {number}")
    assert denials.hint(0, None) == "host 0\n(6 other refusals)\nhost 7\nhost 8"
    for number in range(1000):
        denials.add(f"{number}")
    assert denials.hint(0, None) == "900\n(97 other refusals)\n998\n999"


def test_the_usual_ports_of_the_web_stay_open_when_the_server_has_one() -> None:
    egress = Egress(Policies(), Dialler(NamesOfTheTest(), is_own_address))
    egress.listens_at([443, 8001])
    assert egress.policies.own_ports == {8001}
