"""Strangers cannot fill the disk with log lines, whichever way they are refused."""

from pathlib import Path
from typing import Any

import structlog

from kernelbridge.server.access import refusal
from kernelbridge.server.websocket.stranger_log import IN_ALL, LONGEST, PER_ADDRESS, StrangerLog
from tests.unit.server.conftest import StartServer
from tests.unit.server.logins import all_text, logged, token_server

FLOOD = 3 * int(PER_ADDRESS.burst)


def few(lines: list[dict[str, Any]], event: str) -> bool:
    """Return whether a flood has left some lines, but not one for each refusal."""
    found = [line for line in lines if line["event"] == event]
    return 0 < len(found) < FLOOD / 2 and len(all_text(lines)) < 2 * FLOOD * LONGEST


async def test_a_flood_of_refused_requests(start_server: StartServer) -> None:
    server = await start_server()
    with logged() as lines:
        for _ in range(FLOOD):
            url = f"{server.origin}/{'p' * 4000}"
            async with server.http.get(url, headers={"Host": "h" * 4000}) as answer:
                assert answer.status == 403
                assert len(await answer.read()) < 1000
    assert few(lines, "request_refused")


async def test_a_flood_of_malformed_requests(start_server: StartServer) -> None:
    server = await start_server()
    with logged() as lines:
        for _ in range(FLOOD):
            async with server.wire() as wire:
                wire.write(b"GE(T / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b" 400 " in await wire.head()
    assert few(lines, "malformed_request")


async def test_a_flood_of_first_messages_that_are_no_login(tmp_path: Path) -> None:
    async with token_server(tmp_path) as guarded:
        with logged() as lines:
            for _ in range(FLOOD):
                async with guarded.connect("") as client:
                    await client.send(type="ping")
                    assert (await client.closed())[0] == 1008
    assert few(lines, "connection_ended")


def test_the_next_line_counts_those_that_were_left_out() -> None:
    now = [0.0]
    strangers = StrangerLog(clock=lambda: now[0])
    with structlog.testing.capture_logs() as lines:
        for number in range(int(IN_ALL.burst) + 7):
            strangers.warning("e", f"192.0.2.{number}")
        now[0] = 1.0
        strangers.warning("e", "192.0.2.0", reason="x" * 1000)
    assert len(lines) == IN_ALL.burst + 1
    assert lines[-1]["left_out"] == 7
    assert len(lines[-1]["reason"]) == LONGEST + 1


def test_a_long_host_is_not_repeated() -> None:
    assert len(refusal(["h" * 8000], [], ()) or "") < 1000
    assert len(refusal(["localhost"], ["o" * 8000], ()) or "") < 1000
