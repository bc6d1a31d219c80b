"""What waits for a caller is bounded."""

import asyncio
import threading
from typing import Any

import pytest

from kernelbridge.client import calls, loop_thread
from kernelbridge.client.calls import Call
from kernelbridge.client.core import Kind, Request
from kernelbridge.client.terminal import AsyncTerminal

PATIENCE = 10.0


def data(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "terminal_data", "data": text, **more}


class NoRequests:
    """The session of a terminal that only reads."""

    session_id = "s"

    async def request(self, *_: object) -> dict[str, Any]:
        raise NotImplementedError

    def notify(self, *_: object) -> bool:
        raise NotImplementedError

    def abandon(self, _: Call) -> None:
        raise NotImplementedError


async def test_output_of_a_terminal_that_nobody_reads_is_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "EVENTS", 10)
    call = Call(Request({"requestId": "r"}, Kind.TERMINAL))
    terminal = AsyncTerminal(NoRequests(), call, "t")
    call.put({"type": "terminal_opened", "reattached": False})
    for text in ("12345", "6789", "left out", "ä"):
        call.put(data(text))
    assert [await terminal.read() for _ in range(3)] == ["12345", "6789", "ä"]
    assert terminal.left_out == len("left out")
    call.put(data("new"))
    assert await terminal.read() == "new"
    call.put({"type": "terminal_opened", "reattached": True})
    call.put(data("12345", replay=True))
    call.put(data("6789left outänewest", replay=True))
    assert await terminal.read() == "est", "positions count what was left out, and replays are whole"


def test_the_loop_can_be_asked_for_while_it_is_being_made() -> None:
    found: list[object] = []

    def ask() -> None:
        with loop_thread._lock:  # as `__del__` of a client does that is collected at this moment
            found.append(loop_thread.loop_thread())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert len(found) == 1


async def test_an_error_of_the_caller_comes_before_events() -> None:
    call = Call(Request({"requestId": "r"}, Kind.RUN))
    call.put(data("x"))
    call.fail(ValueError("mine"))
    with pytest.raises(ValueError, match="mine"):
        await asyncio.wait_for(call.next(), PATIENCE)
    assert not call.settled
