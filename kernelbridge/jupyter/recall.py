"""Recall: joins what a kernel repeats of its newest cell with what has arrived since a server is connected (pure).

Messages that a kernel published between two servers reached neither. Our hooks keep them (`guest/kernel/recall.py`) and
repeat them in one reply. They also publish a mark: the reply has all messages before the mark, and none after it.

    recalled     a  b  c  d  e
    held               c  d  e  mark  f  g      messages that have arrived at the new server

The hooks forget the beginning of a long output. Then more may be held than is recalled.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kernelbridge.jupyter import wire

REQUEST = "kernelbridge_recall_request"
MARK = "kernelbridge_recalled"
MAX_REPLY = 4 << 20
"""Bytes of a reply. It has about 1 MiB of messages, which are JSON texts inside JSON."""

_NOTHING = msgspec.Raw(b"null")


class Recalled(msgspec.Struct, frozen=True):
    """Content of `kernelbridge_recall_reply`."""

    cell: str | None = None
    """The `msg_id` of the newest cell's request."""
    messages: list[tuple[str, str, str, str]] = []
    """Type, id, parent's id and content of each message that was published since the cell began."""
    left_out: int | None = 0
    """Bytes of output that were published and are forgotten, most of them from the beginning; None if unknown."""
    reply: msgspec.Raw = _NOTHING
    """Content of the cell's reply, `null` while it runs."""
    figures: wire.Figures = wire.NO_FIGURES
    asked: wire.InputRequest | None = None
    """The question for which the cell waits."""

    @property
    def runs(self) -> bool:
        """Whether the cell has not been replied to."""
        return self.cell is not None and bytes(self.reply) == bytes(_NOTHING)

    def reply_message(self) -> wire.Message | None:
        """Return the reply as if it had arrived on shell; of its metadata only the figures are known."""
        if self.cell is None or self.runs:
            return None
        metadata = b'{"kernelbridge":%b}' % msgspec.json.encode(self.figures)
        return wire.Message("execute_reply", "", self.cell, metadata, bytes(self.reply))

    def question(self) -> wire.Message | None:
        """Return the question as if it had arrived on stdin."""
        if self.asked is None or self.cell is None:
            return None
        return wire.Message("input_request", f"{self.cell}-asked", self.cell, b"{}", msgspec.json.encode(self.asked))


_decoder = msgspec.json.Decoder(Recalled)


def read(reply: wire.Message) -> Recalled:
    """Decode a reply. Raises `BadFrame`."""
    if len(reply.content) > MAX_REPLY:
        raise wire.BadFrame(f"a recall reply of {len(reply.content)} bytes")
    try:
        return _decoder.decode(reply.content)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise wire.BadFrame(f"a recall reply that cannot be read: {exc}") from exc


def before_mark(held: Sequence[wire.Message], recalled: Recalled) -> tuple[list[wire.Message], list[wire.Message]]:
    """Return the messages published before the mark, in order and each once, and the held messages after it."""
    at = next((i for i, message in enumerate(held) if message.msg_type == MARK), len(held))
    known = {msg_id for _, msg_id, _, _ in recalled.messages}
    older = [message for message in held[:at] if message.msg_id not in known]
    told = [
        wire.Message(msg_type, msg_id, parent_id, b"{}", content.encode("utf-8", "replace"))
        for msg_type, msg_id, parent_id, content in recalled.messages
    ]
    return older + told, list(held[at + 1 :])


def since_idle(messages: Sequence[wire.Message], cell: str | None) -> list[wire.Message]:
    """Return the messages published after the cell's end: nobody waits for a cell that they belong to."""
    ends = (
        i
        for i, message in enumerate(messages)
        if message.msg_type == "status" and message.parent_id == cell and b'"idle"' in message.content
    )
    at = next(ends, None)
    return [] if at is None else list(messages[at + 1 :])
