"""A kernel's messages are handled in slices and in order, and the next is read when the last is handled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

import msgspec
import pytest

from kernelbridge.aio.turns import turns
from kernelbridge.jupyter import wire
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.jupyter.end_causes import SESSION_CLOSED
from kernelbridge.jupyter.events import CellEvent, Wrote
from kernelbridge.jupyter.execution import ExecutionTable
from kernelbridge.jupyter.intake import Intake


class Case:
    """An intake in front of a table with one execution, `m`."""

    def __init__(self) -> None:
        self.codec = wire.Codec(b"key", "session")
        self.outcomes: list[Outcome] = []
        self.events: list[CellEvent] = []
        self.faults: list[str] = []
        self.table = ExecutionTable(max_output=64 << 20, clock=lambda: 0.0, late=self.faults.append)
        self.execution = self.table.add("m", self.outcomes.append, self.events.append)
        self.intake = Intake(
            self.codec,
            limit=48 << 20,
            handle=lambda channel, message: (
                self.table.handling_iopub(message) if channel == "iopub" else self.table.handling_shell(message)
            ),
            on_fault=self.faults.append,
            spawn=self.spawn,
            behind=lambda: None,
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    def send(self, channel: str, kind: str, content: Any) -> asyncio.Future[None] | None:
        parts = [
            msgspec.json.encode({"msg_id": "x", "msg_type": kind}),
            b'{"msg_id":"m"}',
            b"{}",
            content if isinstance(content, bytes) else msgspec.json.encode(content),
        ]
        return self.intake.received(channel, [wire.DELIMITER, self.codec.sign(parts), *parts])

    async def stream(self, text: str) -> None:
        if (later := self.send("iopub", "stream", {"name": "stdout", "text": text})) is not None:
            await later


async def test_short_text_is_handled_at_once() -> None:
    case = Case()
    assert case.send("iopub", "stream", {"name": "stdout", "text": "x" * 80 + "\n"}) is None
    assert not case.intake.unread


async def test_a_message_that_cannot_be_handled_leaves_nothing_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the cell would wait for its output for ever."""

    def broken(_channel: str, _message: wire.Message) -> Generator[None, None, None]:
        yield
        raise ZeroDivisionError

    case = Case()
    monkeypatch.setattr(case.intake, "_handle", broken)
    with pytest.raises(ZeroDivisionError):
        case.send("iopub", "stream", {"name": "stdout", "text": "x"})
    assert not case.intake.unread


@pytest.mark.parametrize("text", ["ab\b\b", "\rx", "\x1b[A\n", "\x1b[2K"])
async def test_the_next_message_is_not_read_before_the_last_one_is_drawn(text: str) -> None:
    """Once, a message of 128 Ki characters was drawn in one turn of the loop, up to 0.2 s long."""
    case = Case()
    later = case.send("iopub", "stream", {"name": "stdout", "text": text * (131072 // len(text))})
    assert later is not None
    assert case.intake.unread
    rounds = 0
    while not later.done():
        rounds += 1
        await asyncio.sleep(0)
    assert rounds > 3
    assert not case.intake.unread


@pytest.mark.parametrize("char", ["x", "\x1b", "é", "\n", "😀", "\\", '"', "\ufffd"])
async def test_text_of_a_message_of_any_size_is_complete(char: str) -> None:
    case, text = Case(), "a" + char * 2_000_000
    await case.stream(text)
    case.send("shell", "execute_reply", {"status": "ok"})
    if (later := case.send("iopub", "status", {"execution_state": "idle"})) is not None:
        await later
    assert case.outcomes[0].stdout == text
    assert "".join(event.text for event in case.events if isinstance(event, Wrote)) == text
    assert case.faults == []


@pytest.mark.parametrize("wrong", [b'\\ud800"}', b'\xff"}', b'\\x"}', b'"'])
async def test_a_large_message_that_is_no_json_harms_nobody(wrong: bytes) -> None:
    case = Case()
    later = case.send("iopub", "stream", b'{"name":"stdout","text":"' + b"x," * (9 << 19) + wrong)
    assert later is not None
    await later
    case.send("shell", "execute_reply", {"status": "ok"})
    if (later := case.send("iopub", "status", {"execution_state": "idle"})) is not None:
        await later
    assert "bytes of output that cannot be read were left out" in case.outcomes[0].stderr
    assert case.faults == []


async def test_the_reply_may_come_while_output_is_still_drawn() -> None:
    case = Case()
    later = case.send("iopub", "stream", {"name": "stdout", "text": "ab\b\b" * 30_000})
    assert later is not None
    case.send("shell", "execute_reply", {"status": "ok"})
    await later
    assert case.outcomes == []
    if (later := case.send("iopub", "status", {"execution_state": "idle"})) is not None:
        await later
    assert (case.outcomes[0].success, case.outcomes[0].output) == (True, "ab")


async def test_listeners_get_no_output_that_is_handled_after_the_end() -> None:
    case = Case()
    later = case.send("iopub", "stream", {"name": "stdout", "text": "\rx" * 60_000})
    assert later is not None
    case.table.end_all(SESSION_CLOSED)
    told = len(case.events)
    await later
    assert len(case.outcomes) == 1
    assert len(case.events) == told
    assert len(turns()) == 0


async def test_a_traceback_of_megabytes_is_plain_text() -> None:
    case = Case()
    lines = ["\x1b[31mred\x1b[0m" * 200_000, "é" * 600_000, "end"]
    failure = {"ename": "E", "evalue": "\x1b[1mv" * 300_000, "traceback": lines}
    for channel, kind, content in (
        ("iopub", "error", failure),
        ("shell", "execute_reply", {"status": "error", **failure}),
        ("iopub", "status", {"execution_state": "idle"}),
    ):
        if (later := case.send(channel, kind, content)) is not None:
            await later
    outcome = case.outcomes[0]
    assert outcome.traceback == "red" * 200_000 + "\n" + "é" * 600_000 + "\nend"
    assert outcome.error is not None
    assert outcome.error.startswith("E: vvvv")
    assert len(outcome.error) < 5000
