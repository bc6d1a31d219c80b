"""Every conversation in the documentation happens exactly so."""

from pathlib import Path

import pytest

import kernelbridge
from tests.integration.conftest import RunningServer
from tests.integration.conversations import Conversation, conversations, mismatch

PAGES = Path(kernelbridge.__file__).parent.parent / "docs"
FOUND = tuple(conversations(PAGES))


@pytest.mark.parametrize("conversation", FOUND, ids=str)
async def test_conversation(server: RunningServer, conversation: Conversation) -> None:
    async with server.connect("reader") as client:
        for step, (mark, frame) in enumerate(conversation.steps, 1):
            if mark == "→":
                await client.send(**frame)
            else:
                found = await client.receive()
                assert mismatch(frame, found) is None, f"step {step}: {mismatch(frame, found)}\n{found}"


def test_there_are_conversations() -> None:
    assert FOUND


def test_a_frame_that_is_not_as_described_is_noticed() -> None:
    assert mismatch({"a": "x…z", "seq": 1}, {"a": "xyz", "seq": 7}) is None
    assert mismatch({"a": 1, "…": "…"}, {"a": 1, "b": 2}) is None
    assert mismatch({"a": 1}, {"a": 1, "b": 2}) == " also has ['b']"
    assert mismatch({"a": 1}, {}) == " lacks ['a']"
    assert mismatch({"a": [{"b": True}]}, {"a": [{"b": 1}]}) == ".a[0].b is 1 and not True"
    assert mismatch({"a": "x…"}, {"a": "yx"}) == ".a is 'yx' and not 'x…'"
    assert mismatch({"a": [1]}, {"a": []}) == ".a has 0 items and not 1"
