"""What waits for a caller is bounded."""

import asyncio
import threading
from typing import Any

import pytest

from kernelbridge.client import calls, loop_thread
from kernelbridge.client.calls import Call
from kernelbridge.client.core import Kind, Request
from kernelbridge.client.events import Output, event_of
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


async def test_displays_that_nobody_reads_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "EVENTS", 5000)
    call = Call(Request({"requestId": "r"}, Kind.RUN))
    call.put({"type": "execution_started", "requestId": "r"})
    picture = {"type": "display_data", "data": {"image/png": "x" * 1000, "application/json": {"a": 1}}, "metadata": {}}
    for _ in range(100):
        call.put(dict(picture))
    for _ in range(100):
        call.put({"type": "clear_output", "wait": False})
    call.put({"type": "input_request", "inputId": "i"})
    call.settle({"type": "execution_result"})
    came = []
    while (frame := await call.next()) is not None:
        came.append(frame)
    assert [frame["type"] for frame in came][:1] == ["execution_started"]
    assert came[-1]["type"] == "input_request", "a question is never left out"
    shown = [frame for frame in came if frame["type"] == "display_data"]
    assert 0 < len(shown) < 5
    assert len(came) < 10
    call.put({"type": "execution_output", "text": "on", "stream": "stdout"})
    last = event_of(await call.next() or {"type": "nothing"})
    assert isinstance(last, Output)
    assert last.left_out == (100 - len(shown)) * (1000 + len('{"a": 1}'))


async def test_what_a_frame_counted_that_is_left_out_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "EVENTS", 10)
    call = Call(Request({"requestId": "r"}, Kind.TERMINAL))
    terminal = AsyncTerminal(NoRequests(), call, "t")
    call.put({"type": "terminal_opened", "reattached": False})
    for frame in (data("123456789"), data("lost", leftOut=1000), data("x")):
        call.put(frame)
    assert [await terminal.read(), await terminal.read(), terminal.left_out] == ["123456789", "x", 1004]


async def test_what_was_left_out_before_a_replay_is_shown_by_it_and_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "EVENTS", 10)
    call = Call(Request({"requestId": "r"}, Kind.TERMINAL))
    terminal = AsyncTerminal(NoRequests(), call, "t")
    call.put({"type": "terminal_opened", "reattached": False})
    for frame in (data("123456789"), data("BCDE")):
        call.put(frame)
    assert await terminal.read() == "123456789"
    call.put({"type": "terminal_opened", "reattached": True})
    call.put(data("123456789BCDE", replay=True))
    assert await terminal.read() == "BCDE"
    call.put(data("F"))
    assert [await terminal.read(), terminal.left_out] == ["F", 0]
    call.put({"type": "terminal_opened", "reattached": True})
    call.put(data("123456789BCDEFG", replay=True))
    assert await terminal.read() == "G"


async def test_what_is_left_out_is_said_by_the_next_text_and_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "EVENTS", 2100)
    call = Call(Request({"requestId": "r"}, Kind.RUN))
    for _ in range(2):
        call.put({"type": "display_data", "data": {"image/png": "x" * 1000}, "metadata": {}})
    call.put({"type": "clear_output", "wait": False})  # for which there is room
    while (await call.next() or {})["type"] != "clear_output":
        pass
    call.put({"type": "execution_output", "text": "on", "stream": "stdout"})
    last = event_of(await call.next() or {"type": "nothing"})
    assert isinstance(last, Output)
    assert last.left_out == 1000


async def test_what_a_terminal_leaves_out_is_not_counted_again_after_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "EVENTS", 10)
    call = Call(Request({"requestId": "r"}, Kind.TERMINAL))
    terminal = AsyncTerminal(NoRequests(), call, "t")
    call.put({"type": "terminal_opened", "reattached": False})
    for text in ("1234567890", "C"):  # the second is left out, and comes with the replay
        call.put(data(text))
    call.put({"type": "terminal_opened", "reattached": True})
    call.put(data("0C", replay=True, leftOut=9))
    assert [await terminal.read() for _ in range(2)] == ["1234567890", "C"]
    call.put(data("DE"))
    assert await terminal.read() == "DE"
    call.put({"type": "terminal_opened", "reattached": True})
    call.put(data("DEF", replay=True, leftOut=11))
    assert await terminal.read() == "F"
    assert terminal.left_out == 0
    call.put({"type": "terminal_opened", "reattached": True})
    call.put(data("H", replay=True, leftOut=15))
    assert await terminal.read() == "H"
    assert terminal.left_out == 1, "G was written without a connection, and is not kept any more"


class Unconnected(NoRequests):
    """The session of a terminal while there is no connection."""

    def notify(self, *_: object) -> bool:
        return False


@pytest.mark.parametrize("rows", [float("nan"), 0, -1, 1.5, 1001, "9"])
async def test_a_size_that_no_terminal_can_have_is_not_kept_for_later(rows: Any) -> None:
    call = Call(Request({"requestId": "r", "rows": 24, "cols": 80}, Kind.TERMINAL))
    terminal = AsyncTerminal(Unconnected(), call, "t")
    with pytest.raises(ValueError, match="each must be 1 to 1000"):
        await terminal.resize(rows, 80)
    assert call.request.frame["rows"] == 24
    await terminal.resize(1000, 1)
    assert (call.request.frame["rows"], call.request.frame["cols"]) == (1000, 1)


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
