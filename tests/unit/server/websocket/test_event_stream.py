"""The way of a run's events to a client: merged, in order, counted when they are left out."""

import asyncio
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from kernelbridge.protocol.cells import ClearOutput, ExecutionOutput
from kernelbridge.server.websocket.handlers.event_stream import CHUNK, EventStream, LeftOut
from kernelbridge.server.websocket.handlers.request_context import RequestContext


class SlowClient:
    """The client that asked; it accepts events only while it has room."""

    def __init__(self) -> None:
        self.room = True
        self.got: list[Any] = []
        self.last = 0
        self.came = asyncio.Event()

    def seq(self) -> int:
        self.last += 1
        return self.last

    def event(self, event: object) -> bool:
        if self.room:
            self.got.append(event)
            self.came.set()
        return self.room

    def texts(self) -> list[tuple[str, str]]:
        return [(event.stream, event.text) for event in self.got if isinstance(event, ExecutionOutput)]


def output(stream: str, text: str, seq: int, left_out: LeftOut) -> ExecutionOutput:
    return ExecutionOutput(
        session_id="s", seq=seq, stream="stderr" if stream == "stderr" else "stdout", text=text, left_out=left_out
    )


def cleared(seq: int, left_out: LeftOut) -> ClearOutput:
    return ClearOutput(session_id="s", seq=seq, wait=False, left_out=left_out)


def stream_to(client: SlowClient) -> EventStream:
    return EventStream(cast("RequestContext", client), output)


async def test_neighbouring_text_is_merged_and_sent_by_itself() -> None:
    client = SlowClient()
    events = stream_to(client)
    for text in ("a", "b", "", "c\n"):
        events.write("stdout", text)
    assert client.got == []
    await asyncio.wait_for(client.came.wait(), 30)
    assert client.texts() == [("stdout", "abc\n")]
    assert events.close() == 0


async def test_nothing_changes_places() -> None:
    client = SlowClient()
    events = stream_to(client)
    events.write("stdout", "1")
    events.write("stderr", "2")
    events.write("stderr", "3")
    events.write("stdout", "4")
    events.send(cleared)
    events.write("stdout", "5")
    events.close()
    assert client.texts() == [("stdout", "1"), ("stderr", "23"), ("stdout", "4"), ("stdout", "5")]
    assert isinstance(client.got[3], ClearOutput)
    assert [event.seq for event in client.got] == [1, 2, 3, 4, 5]


async def test_nothing_is_sent_after_the_end() -> None:
    client = SlowClient()
    events = stream_to(client)
    events.write("stdout", "a")
    events.close()
    events.write("stdout", "b")
    events.send(cleared)
    assert events.close() == 0
    assert client.texts() == [("stdout", "a")]
    assert len(client.got) == 1


async def test_long_text_is_not_held_back_and_comes_in_parts() -> None:
    client = SlowClient()
    events = stream_to(client)
    events.write("stdout", "x" * (2 * CHUNK + 1))
    assert [len(text) for _, text in client.texts()] == [CHUNK, CHUNK, 1]
    events.close()


async def test_what_is_left_out_is_counted_and_told_once() -> None:
    client = SlowClient()
    events = stream_to(client)
    client.room = False
    events.write("stdout", "é" * CHUNK)
    events.send(cleared, 7)
    client.room = True
    events.send(cleared)
    events.send(cleared)
    client.room = False
    events.write("stderr", "z")
    assert events.close() == 2 * CHUNK + 7 + 1
    assert [event.left_out for event in client.got] == [2 * CHUNK + 7, UNSET]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(max_size=20), st.booleans())))
def test_everything_is_sent_or_counted(writes: list[tuple[str, str, bool]]) -> None:
    async def run() -> None:
        client = SlowClient()
        events = stream_to(client)
        for stream, text, client.room in writes:
            events.write(stream, text)
        left_out = events.close()
        sent = sum(len(text.encode()) for _, text in client.texts())
        assert sent + left_out == sum(len(text.encode()) for _, text, _ in writes)
        told = sum(event.left_out for event in client.got if event.left_out is not UNSET)
        assert told <= left_out

    asyncio.run(run())
