"""Bounded text: of one that is too long, head and tail are kept (pure)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from msgspec import Struct

_JOIN = 8192  # characters: small writes are joined, or a million of them would be a million objects


def size(text: str) -> int:
    """Return the length of `text` in bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class Bundle(Struct, gc=False):
    """The MIME bundle of a result, and the length of its message in bytes.

    The garbage collector does not look at it: a cell may have 20,000 of them, and nothing in one refers back to it.
    """

    data: dict[str, Any]
    metadata: dict[str, Any]
    length: int


@dataclass(slots=True, eq=False)
class Display:
    """The content of one display id. All places that show it refer to it, so an update has a constant cost."""

    text: str = ""
    length: int = 0
    """Bytes of `text`."""
    tails: int = 0
    """Number of places in the tail that show `text`."""
    heads: int = 0
    """Number of places in the head that show `head_text`, as much of `text` as there is room for."""
    head_text: str = ""
    head_length: int = 0
    bundle: Bundle | None = None
    results: int = 0
    """Number of results that are `bundle`."""


_Piece = str | Display


@dataclass(frozen=True, slots=True)
class Spilled:
    """Where the whole of a truncated text is."""

    path: str | None
    """Path of its file; None if there is none."""
    complete: bool
    """Whether the file has the whole text."""


class Spill(Protocol):
    """Stores the whole of a text that is too long to be kept. Its methods never block."""

    def begin(self, texts: Sequence[str]) -> None:
        """Start, or start again, with these texts."""

    def write(self, text: str) -> None:
        """Add a text at the end."""

    def discard(self) -> None:
        """Delete everything: the text is not too long any more."""

    async def finish(self) -> Spilled:
        """Wait until everything is stored."""
        ...


class BoundedText:
    """Text that is kept whole up to `limit` bytes. Of a longer one `kept` bytes are kept, half of them from each end.

    `spill` returns what stores the whole of a longer text, or None.
    """

    def __init__(self, limit: int, *, kept: int | None = None, spill: Callable[[], Spill | None] | None = None) -> None:
        self._limit = limit
        self._half = max((limit if kept is None else kept) // 2, 1)
        self._new_spill = spill
        self._spill: Spill | None = None
        self.clear()

    def clear(self) -> None:
        """Remove the whole text, and the count of bytes left out. Displays in it must not be used again."""
        self._head: list[_Piece] = []
        self._head_size = 0
        self._tail: deque[_Piece] = deque()
        self._tail_size = 0
        self._small: list[str] = []
        self._small_length = 0
        self._left_out = 0
        self._over = False

    def copy(self) -> BoundedText:
        """Return another with the same text, which must not have displays, and without a spill."""
        self._join()
        other = BoundedText(self._limit, kept=2 * self._half)
        other._head, other._head_size = self._head.copy(), self._head_size
        other._tail, other._tail_size = self._tail.copy(), self._tail_size
        other._left_out, other._over = self._left_out, self._over
        return other

    def append(self, text: str) -> None:
        """Add text at the end."""
        if not text:
            return
        self._small.append(text)
        self._small_length += len(text)
        if self._small_length >= _JOIN:
            self._join()

    def append_display(self, display: Display) -> None:
        """Add a place that shows a display at the end."""
        self._join()
        if display.length <= self._room():
            display.head_text, display.head_length = display.text, display.length
            display.heads += 1
            self._head.append(display)
            self._head_size += display.length
        else:
            display.tails += 1
            self._push_tail(display, display.length)

    def replace(self, display: Display, text: str) -> None:
        """Change the text in every place of a display. Places that were left out stay so."""
        length = size(text)
        self._tail_size += display.tails * (length - display.length)
        if display.heads:
            room = self._half - self._head_size + display.heads * display.head_length
            kept = _first_bytes(text, room // display.heads)
            kept_length = size(kept)
            cut_before, cut = display.length - display.head_length, length - kept_length
            self._left_out += display.heads * (cut - cut_before)
            self._head_size += display.heads * (kept_length - display.head_length)
            display.head_text, display.head_length = kept, kept_length
        display.text, display.length = text, length
        self._trim()

    def _room(self) -> int:
        """Return the number of bytes that fit into the head: none if there is a tail, or bytes were left out."""
        return -1 if self._tail or self._left_out else self._half - self._head_size

    def _join(self) -> None:
        if not self._small:
            return
        text = "".join(self._small)
        self._small.clear()
        self._small_length = 0
        room = self._room()
        if room > 0:
            first = _first_bytes(text, room)
            self._head.append(first)
            self._head_size += size(first)
            text = text[len(first) :]
        # In small parts, because they leave the tail whole later; so nothing is copied twice.
        for start in range(0, len(text), _JOIN):
            part = text[start : start + _JOIN]
            self._push_tail(part, size(part))

    def _push_tail(self, piece: _Piece, length: int) -> None:
        self._tail.append(piece)
        self._tail_size += length
        if self._over and self._spill is not None:
            self._spill.write(piece if isinstance(piece, str) else piece.text)
        self._trim()

    def _trim(self) -> None:
        """Remove pieces from the start of the tail if it is too long, but keep a text that is needed in part."""
        if not self._over:
            if self._head_size + self._tail_size <= self._limit:
                return
            self._begin_spill()
        while self._tail_size > self._half:
            piece = self._tail[0]
            if isinstance(piece, str):
                length = size(piece)
                if self._tail_size - length < self._half:
                    return  # `_first_of_tail` cuts it
            else:
                length = piece.length
                piece.tails -= 1
            self._tail.popleft()
            self._tail_size -= length
            self._left_out += length

    def _begin_spill(self) -> None:
        """Pass the whole text to the spill, because it is about to be cut."""
        self._over = True
        if self._spill is None and self._new_spill is not None:
            self._spill = self._new_spill()
        if self._spill is not None:
            head = [piece if isinstance(piece, str) else piece.head_text for piece in self._head]
            self._spill.begin(head + [piece if isinstance(piece, str) else piece.text for piece in self._tail])

    def _first_of_tail(self) -> tuple[str, int]:
        """Return the first text of the tail, cut to the limit, and the number of bytes cut."""
        self._join()
        if not self._tail:
            return "", 0
        piece = self._tail[0]
        if not isinstance(piece, str):
            return piece.text, 0
        over = self._tail_size - self._half if self._over else 0
        if over <= 0:
            return piece, 0
        length = size(piece)
        kept = _last_bytes(piece, length - over)
        return kept, length - size(kept)

    def text(self) -> str:
        """Return what is kept: the head, directly followed by the tail."""
        first, _ = self._first_of_tail()
        rest = islice(self._tail, 1, None)
        return "".join(
            [
                *(piece if isinstance(piece, str) else piece.head_text for piece in self._head),
                first,
                *(piece if isinstance(piece, str) else piece.text for piece in rest),
            ]
        )

    @property
    def left_out(self) -> int:
        """The number of bytes left out between head and tail."""
        return self._left_out + self._first_of_tail()[1]

    def spilled(self) -> Spill | None:
        """Return what stores the whole text, if it is too long. Nothing may be added afterwards."""
        self._join()
        spill, self._spill = self._spill, None
        if spill is not None and not self._over:
            spill.discard()
            return None
        return spill

    def head_length(self) -> int:
        """Return the number of characters before the place where bytes were left out."""
        self._join()
        return sum(len(piece) if isinstance(piece, str) else len(piece.head_text) for piece in self._head)


def _first_bytes(text: str, limit: int) -> str:
    if text.isascii() or size(text) <= limit:
        return text[:limit]
    return text.encode("utf-8", "surrogatepass")[:limit].decode("utf-8", "ignore")


def _last_bytes(text: str, limit: int) -> str:
    if text.isascii():
        return text[-limit:] if limit > 0 else ""
    raw = text.encode("utf-8", "surrogatepass")
    return raw[len(raw) - limit :].decode("utf-8", "ignore")
