"""What a kernel recalls of its newest cell, and how that and what has been heard since make one whole (pure).

Output that was published between two servers reached neither. Our hooks keep it (`guest/recall.py`) and say it in one
message, with a mark among what they publish: all before the mark is recalled, and nothing behind it.

    recalled     a  b  c  d  e
    held               c  d  e  mark  f  g      what has come since another server listens

Of a long output the beginning may be forgotten; then more may be held than is recalled.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kernelbridge.jupyter import wire

REQUEST = "kernelbridge_recall_request"
MARK = "kernelbridge_recalled"
MAX_REPLY = 4 << 20
"""Bytes of an answer; it is about 1 MiB of messages, each quoted once more."""

_NOTHING = msgspec.Raw(b"null")


class Recalled(msgspec.Struct, frozen=True):
    """Content of `kernelbridge_recall_reply`."""

    cell: str | None = None
    """The `msg_id` of the newest cell's request."""
    messages: list[tuple[str, str, str, str]] = []
    """Type, id, parent's id and content of what was published since it began."""
    left_out: int | None = 0
    """Bytes of output that were published and are forgotten, most of them before those; None: nobody knows."""
    reply: msgspec.Raw = _NOTHING
    """Content of its reply, `null` while it runs."""
    figures: wire.Figures = wire.NO_FIGURES
    asked: wire.InputRequest | None = None
    """What it waits for an answer to."""

    @property
    def runs(self) -> bool:
        """Whether the cell has not been replied to."""
        return self.cell is not None and bytes(self.reply) == bytes(_NOTHING)

    def reply_message(self) -> wire.Message | None:
        """Give the reply as if it had come on shell, but for the figures."""
        if self.cell is None or self.runs:
            return None
        metadata = b'{"kernelbridge":%b}' % msgspec.json.encode(self.figures)
        return wire.Message("execute_reply", "", self.cell, metadata, bytes(self.reply))

    def question(self) -> wire.Message | None:
        """Give what it asks as if it had come on stdin."""
        if self.asked is None or self.cell is None:
            return None
        return wire.Message("input_request", f"{self.cell}-asked", self.cell, b"{}", msgspec.json.encode(self.asked))


_decoder = msgspec.json.Decoder(Recalled)


def read(reply: wire.Message) -> Recalled:
    """Read an answer; raises `BadFrame`."""
    if len(reply.content) > MAX_REPLY:
        raise wire.BadFrame(f"a recollection of {len(reply.content)} bytes")
    try:
        return _decoder.decode(reply.content)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise wire.BadFrame(f"a recollection that cannot be read: {exc}") from exc


def before_mark(held: Sequence[wire.Message], recalled: Recalled) -> tuple[list[wire.Message], list[wire.Message]]:
    """Give what was published before the mark, in order and each message once; and what was behind it."""
    at = next((i for i, message in enumerate(held) if message.msg_type == MARK), len(held))
    known = {msg_id for _, msg_id, _, _ in recalled.messages}
    older = [message for message in held[:at] if message.msg_id not in known]
    told = [
        wire.Message(msg_type, msg_id, parent_id, b"{}", content.encode("utf-8", "replace"))
        for msg_type, msg_id, parent_id, content in recalled.messages
    ]
    return older + told, list(held[at + 1 :])


def since_idle(messages: Sequence[wire.Message], cell: str | None) -> list[wire.Message]:
    """Give what was published after the cell had ended: it belongs to no cell that anybody waits for."""
    ends = (
        i
        for i, message in enumerate(messages)
        if message.msg_type == "status" and message.parent_id == cell and b'"idle"' in message.content
    )
    at = next(ends, None)
    return [] if at is None else list(messages[at + 1 :])
