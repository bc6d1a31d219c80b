"""Recall: what an adopted kernel repeats of its newest cell (pure).

Messages that a kernel published between two servers reached neither. Our hooks keep them (`guest/kernel/recall.py`).
On request they publish them again between two marks, and answer with the cell's reply and question:

    iopub    c  d  BEGINS  a  b  c  d  e  ENDS  f  g
             dropped       repeated             new
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from kernelbridge.jupyter import wire

REQUEST = "kernelbridge_recall_request"
BEGINS = "kernelbridge_replay_begins"
ENDS = "kernelbridge_replay_ends"
MAX_REPLY = 1 << 20
"""Bytes of a reply. The hooks shorten its texts."""

_NOTHING = msgspec.Raw(b"null")
_T = TypeVar("_T")


class Question(wire.InputRequest, frozen=True, gc=False):
    """A question for which the cell waits."""

    msg_id: str = ""
    """That of its message; hooks of earlier versions do not say it."""


class Recalled(msgspec.Struct, frozen=True):
    """Content of `kernelbridge_recall_reply`."""

    cell: str | None = None
    """The `msg_id` of the newest cell's request."""
    reply: msgspec.Raw = _NOTHING
    """Content of the cell's reply, `null` while it runs."""
    figures: wire.Figures = wire.NO_FIGURES
    asked: Question | None = None
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
        msg_id = self.asked.msg_id or f"{self.cell}-asked"
        return wire.Message("input_request", msg_id, self.cell, b"{}", msgspec.json.encode(self.asked))


class Mark(msgspec.Struct, frozen=True):
    """Content of both marks."""

    cell: str | None = None
    """The `msg_id` of the newest cell's request."""
    runs: bool = False
    """Whether the cell has not been replied to."""
    left_out: int | None = None
    """Bytes of the cell's output that are not repeated, because the hooks keep only the newest; None if unknown."""


_recalled, _mark = msgspec.json.Decoder(Recalled), msgspec.json.Decoder(Mark)


def read(reply: wire.Message) -> Recalled:
    """Decode a reply. Raises `BadFrame`."""
    return _decode(reply, _recalled)


def _decode(message: wire.Message, decoder: msgspec.json.Decoder[_T]) -> _T:
    if len(message.content) > MAX_REPLY:
        raise wire.BadFrame(f"a {message.msg_type} of {len(message.content)} bytes")
    try:
        return decoder.decode(message.content)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise wire.BadFrame(f"a {message.msg_type} that cannot be read: {exc}") from exc


class Replay:
    """Decides which messages of iopub count: each message of the followed cell once, and late output.

    Messages before the first mark are dropped, because they are repeated behind it. If no cell is followed, so are all
    messages up to the end of the newest cell: the client of that cell has had its answer.
    """

    def __init__(self) -> None:
        self.cell: str | None = None
        """The `msg_id` of the followed cell; to be set before the first mark can arrive."""
        self.repeats = False
        """Whether the kernel is between its marks."""
        self.over = False
        """Whether the second mark has arrived, or nobody waits for it any more."""
        self.left_out: int | None = None
        """Bytes of the followed cell's output that are lost; None if that is unknown."""
        self._counts = False
        self._newest = Mark()

    def abandon(self) -> None:
        """Let all messages count from now on: the kernel repeats nothing."""
        self.repeats, self.over, self._counts = False, True, True

    def counts(self, message: wire.Message) -> bool:
        """Return whether a message is to be handled. Raises `BadFrame`."""
        if self.over and self._counts:
            return True
        if message.msg_type == BEGINS:
            self._newest = _decode(message, _mark)
            self.repeats, self._counts = True, self._newest.cell == self.cell is not None
        elif message.msg_type == ENDS and self.repeats:
            ours = self._newest.cell == self.cell
            self.left_out = _decode(message, _mark).left_out if ours else 0  # else the followed cell has not begun
            self.repeats, self.over = False, True
            self._counts = self._counts or self.cell is not None or not self._newest.runs
        elif self._counts:
            return True
        elif self.cell is None and message.msg_type == "status" and message.parent_id == self._newest.cell:
            self._counts = b'"idle"' in message.content
        return False
