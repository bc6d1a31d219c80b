"""ZMTP 3.0, the wire protocol of ZeroMQ, as far as a client of kernels needs it (pure).

A connection begins with a greeting of 64 bytes and a READY command of each side. Then follow messages, which consist of
frames, and commands (https://rfc.zeromq.org/spec/23). The mechanism is NULL: who may connect to a kernel's sockets is
decided by their directory, and each message is signed.

A kernel is hostile and may send anything. ZeroMQ's own library hands over a message when all of its frames are there,
and bounds only the size of each frame. Here the frames of a message are bounded together, while they arrive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from io import BytesIO
from typing import Final

MAX_FRAMES = 1000
"""Frames of one message. A message of Jupyter has six or seven, and one more for each of its buffers."""
_MAX_COMMAND = 1 << 12  # bytes

_MORE, _LONG, _COMMAND = 1, 2, 4  # flags of a frame
_SHORT = 0xFF  # bytes of a frame whose size is one byte
_SHORT_HEAD, _LONG_HEAD = 2, 9  # bytes: the flags and the size
_SIGNATURE_END = 9  # index of the last byte of the signature
_MAJOR = 10  # index of the protocol's version
_MECHANISM = slice(12, 32)
_NULL = b"NULL".ljust(20, b"\0")
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + _NULL + bytes(32)

SUBSCRIBE_ALL = b"\x01"
"""The message with which a SUB socket asks for all messages. Since version 3.1 it may be a command instead."""


class Ready:
    """The peer is ready: from now on it may be sent messages."""


READY: Final = Ready()


class BadPeer(Exception):  # noqa: N818 - named for who has sent it, like `BadFrame` for what was sent
    """The peer does not speak ZMTP 3, or has sent too much. The text follows "it"."""


def opening(socket_type: str, routing_id: bytes = b"") -> bytes:
    """Return what a client sends first, without waiting for anything. `socket_type` is DEALER or SUB."""
    properties = _property(b"Socket-Type", socket_type.encode("ascii"))
    if routing_id:
        properties += _property(b"Identity", routing_id)
    return _GREETING + _command(b"READY", properties)


def encode(frames: Sequence[bytes]) -> bytes:
    """Return the bytes of a message."""
    parts: list[bytes] = []
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        parts += (_head(_MORE if number != last else 0, len(frame)), frame)
    return b"".join(parts)


def _head(flags: int, size: int) -> bytes:
    return bytes((flags, size)) if size <= _SHORT else bytes((flags | _LONG,)) + size.to_bytes(8, "big")


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def _command(name: bytes, data: bytes) -> bytes:
    body = bytes((len(name),)) + name + data
    return _head(_COMMAND, len(body)) + body


class Decoder:
    """Splits what a peer sends into messages; a message has at most `limit` bytes.

    `feed` it with what was received, in pieces of any size, and `read` until that returns None.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._greeted = self._ready = False
        self._refused = ""
        self._pieces: deque[bytes] = deque()
        self._piece, self._at = b"", 0
        self._frames: list[bytes] = []
        self._size = 0
        self._flags = 0
        self._body: BytesIO | None = None
        """What has come of a frame of which some is missing. Its value is taken without a copy."""
        self._missing = 0
        self.waiting = 0
        """Bytes that were fed and not read yet."""

    @property
    def pieces(self) -> int:
        """How many pieces were fed and not begun yet."""
        return len(self._pieces)

    def refuse(self, fault: str) -> None:
        """Let the next `read` raise `BadPeer`: it has done something beside what it sent."""
        self._refused = fault

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._pieces.append(data)
        self.waiting += len(data)

    def read(self) -> list[bytes] | bytes | Ready | None:
        """Return the frames of the next message, `READY`, or bytes to send as an answer; None if more must come first.

        The answer to a command may be empty. Raises `BadPeer`; then nothing more can be read.
        """
        if self._refused:
            raise BadPeer(self._refused)
        if not self._greeted and not self._read_greeting():
            return None
        while (frame := self._frame()) is not None:
            flags = self._flags
            if flags & _COMMAND:
                return self._on_command(frame)
            self._frames.append(frame)
            if not flags & _MORE:
                message, self._frames, self._size = self._frames, [], 0
                return message
        return None

    def _read_greeting(self) -> bool:
        if not self.waiting:
            return False
        self._join(min(self.waiting, len(_GREETING)))
        greeting = self._piece[: len(_GREETING)]
        # Checked as far as it has come, because earlier versions have shorter ones.
        old = len(greeting) > _MAJOR and (not greeting[_SIGNATURE_END] & 1 or greeting[_MAJOR] < _GREETING[_MAJOR])
        if greeting[0] != _GREETING[0] or old:
            raise BadPeer("does not speak version 3 of ZeroMQ's protocol")
        if len(greeting) < len(_GREETING):
            return False
        if greeting[_MECHANISM] != _NULL:
            raise BadPeer("asks for a security mechanism of ZeroMQ")
        self._greeted = True
        self._advance(len(_GREETING))
        return True

    def _frame(self) -> bytes | None:
        """Return the next frame, whose flags are in `_flags` then, or None if more must come first."""
        body = self._body
        if body is None:
            if not self.waiting:
                self._piece, self._at = b"", 0  # an idle kernel keeps nothing here
                return None
            piece, at = self._piece, self._at
            if len(piece) - at < _LONG_HEAD:
                self._join(min(self.waiting, _LONG_HEAD))
                piece, at = self._piece, self._at
                if len(piece) - at < (_LONG_HEAD if piece[at] & _LONG else _SHORT_HEAD):
                    return None
            flags = self._flags = piece[at]
            if flags & _LONG:
                size, start = int.from_bytes(piece[at + 1 : at + _LONG_HEAD], "big"), at + _LONG_HEAD
            else:
                size, start = piece[at + 1], at + _SHORT_HEAD
            self._check(flags, size)
            end = start + size
            if end <= len(piece):
                self.waiting -= end - at
                self._at = end
                return piece[start:end]
            self._advance(start - at)
            body, self._missing = BytesIO(), size
        while self._missing and self.waiting:
            part = self._take(self._missing)
            body.write(part)
            self._missing -= len(part)
        if self._missing:
            self._body = body
            return None
        self._body = None
        return body.getvalue()

    def _check(self, flags: int, size: int) -> None:
        """Raise `BadPeer` if the frame that begins is not allowed."""
        if flags & ~(_MORE | _LONG | _COMMAND):
            raise BadPeer("sent a frame of an unknown kind")
        if flags & _COMMAND:
            if flags & _MORE:
                raise BadPeer("sent a frame of an unknown kind")
            if size > _MAX_COMMAND:
                raise BadPeer("sent a command of ZeroMQ that is too large")
            return
        if not self._ready:
            raise BadPeer("sent a message before it was ready")
        self._size += size
        if self._size > self._limit:
            raise BadPeer("sent a message that is too large")
        if len(self._frames) >= MAX_FRAMES:
            raise BadPeer("sent a message of too many frames")

    def _on_command(self, body: bytes) -> bytes | Ready:
        name, data = body[1 : 1 + body[0]] if body else b"", body[1 + body[0] :] if body else b""
        if name == b"ERROR":
            raise BadPeer("refused the connection")
        if name == b"READY" and not self._ready:
            self._ready = True
            return READY
        if name == b"PING":
            return _command(b"PONG", data[2:])  # without its first field, the time to live
        return b""  # one that a later version adds

    # -- the pieces ---------------------------------------------------------------

    def _join(self, size: int) -> None:
        """Make the first `size` bytes, all of which have come, one piece."""
        while len(self._piece) - self._at < size:
            self._piece, self._at = self._piece[self._at :] + self._pieces.popleft(), 0

    def _advance(self, size: int) -> None:
        self._at += size
        self.waiting -= size

    def _take(self, size: int) -> bytes:
        """Return at most `size` bytes and at least one; some must have come."""
        if self._at == len(self._piece):
            self._piece, self._at = self._pieces.popleft(), 0
        part = self._piece if not self._at and len(self._piece) <= size else self._piece[self._at : self._at + size]
        self._advance(len(part))
        return part
