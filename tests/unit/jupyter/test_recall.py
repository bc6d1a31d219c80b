"""What counts of the messages that a kernel repeats, and what its hooks keep."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from kernelbridge.guest.kernel import recall as guest
from kernelbridge.jupyter import recall, wire
from kernelbridge.jupyter.recall import Recalled, Replay


def published(name: str, newest: str | None) -> wire.Message:
    """Return a message of iopub by its name here; a single letter is a text of the newest cell."""
    match name:
        case "begins":
            return message(recall.BEGINS, {"cell": newest, "runs": False})
        case "begins, runs":
            return message(recall.BEGINS, {"cell": newest, "runs": True})
        case "ends":
            return message(recall.ENDS, {"left_out": 5})
        case "idle" | "busy":
            return message("status", {"execution_state": name}, newest or "")
    return message("stream", {"name": "stdout", "text": name}, newest or "")


def message(msg_type: str, content: object, parent: str = "") -> wire.Message:
    return wire.Message(msg_type, "m", parent, b"{}", msgspec.json.encode(content))


def counted(cell: str | None, newest: str | None, names: Sequence[str]) -> tuple[str, int | None]:
    """Return the texts that count, and the number of lost bytes."""
    replay = Replay()
    replay.cell = cell
    texts = [name for name in names if replay.counts(published(name, newest)) and len(name) == 1]
    return "".join(texts), replay.left_out


@pytest.mark.parametrize(
    ("cell", "newest", "names", "texts", "lost"),
    [
        ("ours", "ours", ["c", "d", "begins", "a", "b", "c", "d", "ends", "e"], "abcde", 5),
        ("ours", "ours", ["begins", "ends", "a"], "a", 5),
        ("ours", "earlier", ["a", "begins", "a", "idle", "b", "ends", "c"], "c", 0),
        ("ours", "ours", ["a", "b"], "", None),
        (None, "earlier", ["a", "begins", "a", "idle", "b", "ends", "c"], "bc", 0),
        (None, "earlier", ["begins", "a", "ends", "b"], "b", 0),
        (None, "earlier", ["begins, runs", "a", "ends", "b", "busy", "idle", "c"], "c", 0),
        (None, None, ["a", "begins", "a", "ends", "b"], "b", 5),
    ],
)
def test_each_message_of_the_followed_cell_counts_once(
    cell: str | None, newest: str | None, names: list[str], texts: str, lost: int | None
) -> None:
    assert counted(cell, newest, names) == (texts, lost)


def test_all_messages_count_when_nothing_is_repeated() -> None:
    replay = Replay()
    replay.abandon()
    assert replay.counts(published("a", "cell"))
    assert replay.left_out is None


def answer(content: object) -> wire.Message:
    return message("kernelbridge_recall_reply", content)


def test_a_recalled_reply_is_like_one_on_shell() -> None:
    content = {"cell": "c", "reply": {"status": "ok"}, "figures": {"cpu_ms": 1.5}}
    reply = recall.read(answer(content)).reply_message()
    assert reply is not None
    assert (reply.msg_type, reply.parent_id) == ("execute_reply", "c")
    assert wire.decode(reply.content, wire.ExecuteReply).status == "ok"
    assert wire.decode(reply.metadata, wire.ReplyMetadata).kernelbridge.cpu_ms == 1.5


def test_a_cell_that_runs_has_no_reply() -> None:
    assert recall.read(answer({"cell": "c", "reply": None})) == Recalled("c")
    assert Recalled("c").reply_message() is None


@pytest.mark.parametrize(
    "content", [None, [], {"cell": 1}, {"figures": {"cpu_ms": "x"}}, {"cell": "x" * recall.MAX_REPLY}]
)
def test_nonsense_is_refused(content: object) -> None:
    with pytest.raises(wire.BadFrame):
        recall.read(answer(content))


@pytest.mark.parametrize("content", [None, [], {"cell": 1}, {"runs": 1}, {"cell": "x" * recall.MAX_REPLY}])
def test_nonsense_in_a_mark_is_refused(content: object) -> None:
    with pytest.raises(wire.BadFrame):
        Replay().counts(message(recall.BEGINS, content))


CellRecord: Any = guest.CellRecord
"""It has no types: it runs in the kernel."""


class FullMemory(deque[object]):
    """Has no room for one more message."""

    def append(self, _message: object) -> None:
        raise MemoryError


def frames(msg_type: str, content: bytes, header: bytes = b"") -> list[bytes]:
    """Return the frames of a message with a buffer; `header` replaces its own."""
    header = header or msgspec.json.encode({"msg_type": msg_type, "msg_id": "m"})
    return [b"topic", guest.DELIMITER, b"signature", header, b'{"msg_id":"cell"}', b"{}", content, b"buffer"]


def test_messages_are_repeated_without_their_buffers() -> None:
    record, sent = CellRecord("cell"), list[list[bytes]]()
    record.add(frames("stream", b"a"), 1)
    record.add(frames("display_data", b"b"), None)
    assert record.replay(sent.append) == 0
    assert sent == [frames("stream", b"a")[:-1], frames("display_data", b"b")[:-1]]


def test_output_that_the_kernel_has_no_room_for_is_counted() -> None:
    record = CellRecord("cell")
    record.messages = FullMemory()
    record.add(frames("stream", b'{"text":"abc"}'), 3)
    record.add(frames("display_data", b"12345"), None)
    record.add(frames("status", b"{}"), None)
    assert (record.replay([].append), record.size) == (8, 0)


def test_forgotten_output_is_counted() -> None:
    record = CellRecord("cell")
    record.add(frames("display_data", b"12345", header=b"{"), None)
    for _ in range(2):
        record.add(frames("stream", b" " * guest.KEPT), 7)
    assert (record.replay([].append), record.size, len(record.messages)) == (5 + 7 + 7, 0, 0)
