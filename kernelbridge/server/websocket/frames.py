"""A client's bytes, cut into whole WebSocket messages (RFC 6455); pure.

aiohttp's reader unmasks and delivers messages, but it keeps the parts of an unfinished one where they cannot be counted
or dropped, and it accepts some of what the RFC forbids. So it gets whole messages only, and an unfinished one is kept
here. The only payload that is looked at is the code of a close.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
PROTOCOL_ERROR, MESSAGE_TOO_BIG = 1002, 1009
FRAMES_AT_ONCE = 500
"""Frames after which `take` returns: a frame may have only six bytes, and other clients wait for the event loop."""

_CONTROL = 0x8
_SHORT = 125
_SPARE = 1 << 20
"""A message may have this many bytes of frame headers, and as many again as its payload may have."""
_KNOWN = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
_OWN_CLOSE_CODES = range(3000, 5000)


class Violation(NamedTuple):
    """What the client did that ends the connection."""

    code: int
    """The close code."""
    reason: str


class Taken(NamedTuple):
    """What `Frames.take` made of some bytes."""

    whole: list[bytes | bytearray]
    """Whole messages and control frames as they came, in order. One item may contain several."""
    size: int
    """Payload bytes of those messages."""
    messages: int
    control_size: int
    """Payload bytes of the pings and pongs."""
    controls: int
    used: int
    """How many bytes were used. The next call gets the rest again, followed by what comes next."""
    more: bool
    """Whether the rest may contain more frames already."""
    closes: bool
    """Whether there was a close."""
    violation: Violation | None


class _Header(NamedTuple):
    fin: bool
    opcode: int
    length: int
    """Of the payload."""
    start: int
    """Where the payload begins."""


class Frames:
    """Cuts the bytes of one connection. A message may have at most `max_message` bytes of payload."""

    def __init__(self, max_message: int) -> None:
        self.max_message = max_message
        self._message = bytearray()
        """The frames of the unfinished message, as they came."""
        self._payload = 0
        self._left = 0
        """Bytes that are missing in the last of these frames."""
        self._fin = False
        self._fragmented = False
        self._dropping = False
        self.started = 0
        """How many messages have begun."""

    @property
    def held(self) -> int:
        """Bytes of the unfinished message."""
        return len(self._message)

    @property
    def unfinished(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._left) or self._fragmented

    def drop(self) -> None:
        """Drop the unfinished message. From now on nothing is kept, and `take` only looks for a close."""
        self._dropping = True
        self._message = bytearray()

    def take(self, data: bytes) -> Taken:  # noqa: C901, PLR0912 - one loop over frames, read in one piece
        """Cut the next bytes of the client."""
        whole: list[bytes | bytearray] = []
        size = messages = control_size = controls = at = run = 0
        closes, violation, more = False, None, True
        for _ in range(FRAMES_AT_ONCE):
            if self._left:
                at = run = self._continue(data, at)
            else:
                found = self._header(data, at)
                if not isinstance(found, _Header):
                    more, violation = False, found
                    break
                end = found.start + found.length
                if found.opcode & _CONTROL:
                    violation = _wrong_close(data[found.start - 4 : end]) if found.opcode == CLOSE else None
                    if end > len(data) or violation is not None:
                        more, violation = False, violation if end <= len(data) else None
                        break
                    if found.opcode == CLOSE:
                        closes = True
                    else:
                        control_size, controls = control_size + found.length, controls + 1
                    at = end
                    continue
                self.started += found.opcode != CONTINUATION
                if found.fin and not self._fragmented and end <= len(data):
                    size, messages, at = size + found.length, messages + 1, end
                    continue
                # The rest of it is in later bytes or in another frame, so it is kept from here on.
                if run < at:
                    whole.append(data[run:at])
                self._begin(found, data[at : found.start])
                at = run = found.start
            if not self._left and self._fin:
                whole.append(self._message)
                size, messages = size + self._payload, messages + 1
                self._message, self._payload, self._fin, self._fragmented = bytearray(), 0, False, False
            if at == len(data):
                more = False
                break
        if run < at:
            whole.append(data if (run, at) == (0, len(data)) else data[run:at])
        if self._dropping:
            whole, size, messages, control_size, controls = [], 0, 0, 0, 0
        if violation is not None and violation.code == MESSAGE_TOO_BIG:
            at = self._skip(data, at)
        return Taken(whole, size, messages, control_size, controls, at, more, closes, violation)

    def _begin(self, frame: _Header, header: bytes) -> None:
        if not self._dropping:
            self._message += header
        self._payload += frame.length
        self._left, self._fin = frame.length, frame.fin
        self._fragmented = not frame.fin

    def _continue(self, data: bytes, at: int) -> int:
        """Add to the unfinished frame; return where it ends, or the end of the data."""
        end = min(at + self._left, len(data))
        if not self._dropping:
            self._message += memoryview(data)[at:end]
        self._left -= end - at
        return end

    def _skip(self, data: bytes, at: int) -> int:
        """Drop everything from now on, starting with a frame that is too large; return where its payload begins."""
        self.drop()
        found = self._header(data, at)
        if not isinstance(found, _Header):
            return at  # the header is incomplete
        self._begin(found, b"")
        return found.start

    def _header(self, data: bytes, at: int) -> _Header | Violation | None:
        """Read the header at `at`. Returns None if it is incomplete."""
        if len(data) - at < 2:  # noqa: PLR2004  a header's shortest part
            return None
        first, second = data[at], data[at + 1]
        fin, opcode, length = bool(first & 0x80), first & 0x0F, second & 0x7F
        if (reason := self._wrong(first, second)) is not None:
            return Violation(PROTOCOL_ERROR, reason)
        start = at + 2
        if length > _SHORT:
            width, form = (2, "!H") if length == _SHORT + 1 else (8, "!Q")
            if len(data) - start < width:
                return None
            length = struct.unpack_from(form, data, start)[0]
            start += width
        if not opcode & _CONTROL and not self._dropping:
            if length > self.max_message - self._payload:
                return Violation(MESSAGE_TOO_BIG, f"a message has at most {self.max_message} bytes")
            if len(self._message) > 2 * self.max_message + _SPARE:
                return Violation(MESSAGE_TOO_BIG, "the message is in too many fragments")
        start += 4
        return _Header(fin, opcode, length, start) if len(data) >= start else None

    def _wrong(self, first: int, second: int) -> str | None:
        """Return which rule of the RFC the first two bytes of a frame break, or None."""
        opcode = first & 0x0F
        if first & 0x70:
            return "a reserved bit is set"
        if opcode not in _KNOWN:
            return f"there is no opcode {opcode}"
        if not second & 0x80:
            return "a client's frames must be masked"
        if opcode & _CONTROL:
            long = "a control frame has at most 125 bytes" if second & 0x7F > _SHORT else None
            return long if first & 0x80 else "a control frame must not be fragmented"
        if (opcode == CONTINUATION) == self._fragmented:
            return None
        return "the message before has not ended" if self._fragmented else "there is no message to continue"


def _wrong_close(frame: bytes) -> Violation | None:
    """Check the code of a close. `frame` is its mask and its payload."""
    mask, payload = frame[:4], frame[4:]
    if not payload:
        return None
    if len(payload) == 1:
        return Violation(PROTOCOL_ERROR, "a close code has two bytes")
    code = (payload[0] ^ mask[0]) << 8 | payload[1] ^ mask[1]
    if code in _CLOSE_CODES or code in _OWN_CLOSE_CODES:
        return None
    return Violation(PROTOCOL_ERROR, f"the close code {code} must not be sent")
