"""A run that asks, and goes on without waiting for its answer."""

import asyncio
from typing import Any

import pytest

from kernelbridge import AsyncClient, Output
from kernelbridge.client.calls import Call
from kernelbridge.client.core import Kind, Request

PATIENCE = 10.0


def question(input_id: str) -> dict[str, Any]:
    return {"type": "input_request", "inputId": input_id, "prompt": input_id, "password": False}


def output(text: str) -> dict[str, Any]:
    return {"type": "execution_output", "text": text, "stream": "stdout"}


class Asked:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[str] = asyncio.Queue()
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.ended: list[str] = []

    async def __call__(self, prompt: str, _secret: bool) -> str:  # noqa: FBT001 - it is called so
        self.asked.put_nowait(prompt)
        try:
            return await self.lines.get()
        finally:
            self.ended.append(prompt)


async def test_a_run_is_followed_while_it_asks_and_only_its_latest_question_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, call = AsyncClient("ws://localhost:1"), Call(Request({"requestId": "r"}, Kind.RUN, sent=True))
    replies: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def start(*_: object) -> Call:
        return call

    monkeypatch.setattr(client, "start", start)
    monkeypatch.setattr(client, "reply", lambda _, input_id, value: replies.put_nowait((input_id, value)))
    asked, shown = Asked(), asyncio.Queue[Output]()
    running = asyncio.create_task(client.session("s").run("", on_input=asked, on_output=shown.put_nowait))
    async with asyncio.timeout(PATIENCE):
        call.put(question("first"))
        assert await asked.asked.get() == "first"
        call.put(output("goes on"))
        assert (await shown.get()).text == "goes on"
        call.put(question("second"))
        assert await asked.asked.get() == "second"
        asked.lines.put_nowait("line")
        assert await replies.get() == ("second", "line")
        call.put(question("third"))
        assert await asked.asked.get() == "third"
        call.settle({"type": "execution_result", "success": True, "output": ""})
        await running
        await asyncio.sleep(0)
    assert asked.ended == ["first", "second", "third"]
    assert replies.empty()
