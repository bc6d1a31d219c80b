"""What is recalled and what was heard make one whole."""

from collections import deque
from typing import Any

import msgspec
import pytest

from kernelbridge.guest.kernel import recall as guest
from kernelbridge.jupyter import recall, wire
from kernelbridge.jupyter.recall import Recalled, before_mark, since_idle


def heard(*names: str) -> list[wire.Message]:
    return [wire.Message(recall.MARK if name == "mark" else "stream", name, "cell", b"{}", b"{}") for name in names]


def recalled(*names: str, left_out: int = 0) -> Recalled:
    return Recalled("cell", [("stream", name, "cell", "{}") for name in names], left_out)


def ids(messages: list[wire.Message]) -> str:
    return "".join(message.msg_id for message in messages)


@pytest.mark.parametrize(
    ("kept", "held", "before", "behind"),
    [
        ("abcde", ["c", "d", "e", "mark", "f", "g"], "abcde", "fg"),
        ("abcde", ["mark", "f"], "abcde", "f"),
        ("abcde", ["mark"], "abcde", ""),
        ("", ["mark", "a"], "", "a"),
        ("de", ["b", "c", "d", "e", "mark", "f"], "bcde", "f"),
        ("", ["a", "b", "mark"], "ab", ""),
        ("ab", ["a", "b"], "ab", ""),
    ],
)
def test_each_message_comes_once_and_in_order(kept: str, held: list[str], before: str, behind: str) -> None:
    first, last = before_mark(heard(*held), recalled(*kept))
    assert (ids(first), ids(last)) == (before, behind)


def test_what_comes_after_the_end_belongs_to_no_cell() -> None:
    idle = wire.Message("status", "i", "cell", b"{}", b'{"execution_state": "idle"}')
    busy = wire.Message("status", "b", "cell", b"{}", b'{"execution_state": "busy"}')
    assert ids(since_idle([busy, *heard("a"), idle, *heard("b")], "cell")) == "b"
    assert since_idle([busy, *heard("a")], "cell") == []
    assert since_idle([*heard("a")], None) == []


def reply(content: object) -> wire.Message:
    return wire.Message("kernelbridge_recall_reply", "m", "p", b"{}", msgspec.json.encode(content))


def test_a_reply_is_told_as_if_it_had_come_on_shell() -> None:
    content = {"cell": "c", "messages": [], "left_out": 0, "reply": {"status": "ok"}, "figures": {"cpu_ms": 1.5}}
    message = recall.read(reply(content)).reply_message()
    assert message is not None
    assert (message.msg_type, message.parent_id) == ("execute_reply", "c")
    assert wire.decode(message.content, wire.ExecuteReply).status == "ok"
    assert wire.decode(message.metadata, wire.ReplyMetadata).kernelbridge.cpu_ms == 1.5


def test_a_cell_that_runs_has_no_reply() -> None:
    assert recall.read(reply({"cell": "c", "reply": None})).reply_message() is None


@pytest.mark.parametrize(
    "content", [None, [], {"messages": 1}, {"messages": [["a"]]}, {"left_out": "x"}, {"cell": "x" * recall.MAX_REPLY}]
)
def test_nonsense_is_refused(content: object) -> None:
    with pytest.raises(wire.BadFrame):
        recall.read(reply(content))


CellRecord: Any = guest.CellRecord
"""It has no types: it runs in the kernel."""


class FullMemory(deque[object]):
    """Has no room for one more message."""

    def append(self, _message: object) -> None:
        raise MemoryError


def published(msg_type: str, content: bytes, header: bytes = b"") -> list[bytes]:
    """Give the frames of a message; `header` replaces its own."""
    header = header or msgspec.json.encode({"msg_type": msg_type, "msg_id": "m"})
    return [b"topic", guest.DELIMITER, b"signature", header, b'{"msg_id":"cell"}', b"{}", content]


def test_output_that_the_kernel_has_no_room_for_is_counted() -> None:
    kept = CellRecord("cell")
    kept.messages = FullMemory()
    kept.add(published("stream", b'{"text":"abc"}'), 3)
    kept.add(published("display_data", b"12345"), None)
    kept.add(published("status", b"{}"), None)
    assert (kept.with_messages()["left_out"], kept.with_messages()["messages"], kept.size) == (8, [], 0)


def test_what_cannot_be_told_is_counted_and_the_rest_is_told() -> None:
    kept = CellRecord("cell")
    kept.add(published("stream", b'{"text":"abc"}'), 3)
    kept.add(published("stream", b'{"text":"defg"}', header=b"{"), 4)
    kept.add(published("", b"12345", header=b"\xff"), None)
    told = recall.read(reply(kept.with_messages()))
    assert ([content for *_, content in told.messages], told.left_out) == (['{"text":"abc"}'], 9)


def test_what_is_forgotten_is_counted_whatever_it_is() -> None:
    kept = CellRecord("cell")
    kept.add(published("display_data", b"12345", header=b"{"), None)
    for _ in range(2):
        kept.add(published("stream", b" " * guest.KEPT), 7)
    assert (kept.left_out, kept.size, len(kept.messages)) == (5 + 7 + 7, 0, 0)
