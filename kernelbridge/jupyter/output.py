"""What a cell wrote, as a terminal would have shown it (pure).

`Output` takes the events of one execution in order of arrival and gives `output` (the terminal's
view of stdout, stderr and the text of results), the raw `stdout` and `stderr`, and the MIME
bundles. Every part is bounded: past the limit the first and the last half are kept and the
number of bytes between them is counted. Work is linear in what arrives, however it is cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from kernelbridge.text import render_terminal, strip_ansi

ResultType = Literal["execute_result", "display_data"]

_JOIN = 8192  # characters: small writes are joined, or a million of them would be a million objects
_BLOCK = 1 << 18  # characters that are drawn at once; a block takes milliseconds, whatever is in it
_RESULT_COST = 256  # bytes that a bundle costs beside its text: a million empty ones are not free
_MAX_DISPLAYS = 10_000  # displays of one cell that can be updated
_ESCAPE_TAIL = 64  # characters in which the start of a cut escape sequence is looked for


def size(text: str) -> int:
    """Give the length of `text` in bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class _Slot:
    """The text of one display: a later update replaces it in place."""

    __slots__ = ("place", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.place: Literal["head", "tail", "left out"] = "tail"


_Piece = str | _Slot


class _Terminal:
    """Draws text as it comes and hands on what the cursor has left behind."""

    def __init__(self, settled: Callable[[str], None]) -> None:
        self._settled = settled
        self._raw: list[str] = []
        self._length = 0
        self._fresh = True

    def feed(self, text: str) -> None:
        """Take what a program wrote."""
        self._raw.append(text)
        self._length += len(text)
        if self._length >= _BLOCK:
            self._draw()

    def _draw(self) -> None:
        raw = "".join(self._raw)
        self.clear_pending()
        line_end = raw.rfind("\n") + 1
        if line_end:
            self._settle(render_terminal(raw[:line_end]))
            self.feed_rest(raw[line_end:])
            return
        # One long line: most of it was overwritten (a progress bar), or it is settled although `\r` could reach it.
        cut = raw.rfind("\x1b", len(raw) - _ESCAPE_TAIL)
        shown, rest = (raw, "") if cut < 0 else (raw[:cut], raw[cut:])
        shown = render_terminal(shown)
        if len(shown) > _BLOCK // 2:
            self._settle(shown)
            shown = ""
        self.feed_rest(shown + rest)

    def feed_rest(self, text: str) -> None:
        """Take back what was not settled; it is shorter than a block."""
        if text:
            self._raw.append(text)
            self._length = len(text)

    def _settle(self, text: str) -> None:
        if text:
            self._settled(text)
            self._fresh = text.endswith("\n")

    def finish(self) -> None:
        """Hand on all that there is."""
        raw = "".join(self._raw)
        self.clear_pending()
        self._settle(render_terminal(raw))

    def fresh_line(self) -> None:
        """Hand on all that there is and end the line if something is on it."""
        self.finish()
        if not self._fresh:
            self._settle("\n")

    def clear_pending(self) -> None:
        """Forget what was not handed on."""
        self._raw.clear()
        self._length = 0

    def clear(self) -> None:
        """Start with an empty screen."""
        self.clear_pending()
        self._fresh = True


def _text(piece: _Piece) -> str:
    return piece if isinstance(piece, str) else piece.text


class BoundedText:
    """Text of which at most `limit` bytes are kept: the first half and the last half."""

    def __init__(self, limit: int) -> None:
        self._half = max(limit // 2, 1)
        self.clear()

    def clear(self) -> None:
        """Forget everything, what was left out included."""
        self._head: list[_Piece] = []
        self._head_size = 0
        self._tail: deque[_Piece] = deque()
        self._tail_size = 0
        self._small: list[str] = []
        self._small_length = 0
        self.left_out = 0
        """Bytes that were dropped between head and tail."""

    def append(self, text: str) -> None:
        """Add text at the end."""
        self._small.append(text)
        self._small_length += len(text)
        if self._small_length >= _JOIN:
            self._join()

    def append_slot(self, slot: _Slot) -> None:
        """Add a display's text at the end; it stays replaceable while it is kept."""
        self._join()
        length = size(slot.text)
        if length <= self._half - self._head_size and not self._tail:
            slot.place = "head"
            self._head.append(slot)
            self._head_size += length
        else:
            self._push_tail(slot, length)

    def resized(self, slot: _Slot, text: str) -> None:
        """Replace the text of a slot; one that was left out is not brought back."""
        if slot.place == "left out":
            return
        if slot.place == "tail":
            self._tail_size += size(text) - size(slot.text)
        else:
            self._head_size -= size(slot.text)
            kept = _first_bytes(text, self._half - self._head_size)
            self.left_out += size(text) - size(kept)
            self._head_size += size(kept)
            text = kept
        slot.text = text
        self._trim()

    def _join(self) -> None:
        if not self._small:
            return
        text = "".join(self._small)
        self._small.clear()
        self._small_length = 0
        length = size(text)
        room = self._half - self._head_size
        if room > 0 and not self._tail:
            if length <= room:
                self._head.append(text)
                self._head_size += length
                return
            first = _first_bytes(text, room)
            self._head.append(first)
            self._head_size += size(first)
            text = text[len(first) :]
            length = size(text)
        self._push_tail(text, length)

    def _push_tail(self, piece: _Piece, length: int) -> None:
        self._tail.append(piece)
        self._tail_size += length
        self._trim()

    def _trim(self) -> None:
        while self._tail_size > self._half:
            piece = self._tail[0]
            text = _text(piece)
            length = size(text)
            excess = self._tail_size - self._half
            if isinstance(piece, _Slot):
                self._tail.popleft()
                piece.place, piece.text = "left out", ""
            elif length <= excess:
                self._tail.popleft()
            elif length < excess + 2 * _JOIN:
                return  # the piece goes when it can go whole; `text()` cuts what is over
            else:
                kept = _last_bytes(text, length - excess)
                self._tail[0] = kept
                length -= size(kept)
            self._tail_size -= length
            self.left_out += length

    def text(self) -> str:
        """Give what is kept, the head directly followed by the tail."""
        self._join()
        head = "".join(map(_text, self._head))
        tail = "".join(map(_text, self._tail))
        if self._tail_size > self._half:
            kept = _last_bytes(tail, self._half)
            self.left_out += size(tail) - size(kept)
            self._tail = deque([kept])
            self._tail_size = size(kept)
            tail = kept
        return head + tail

    def head_length(self) -> int:
        """Give the number of characters before the place where bytes were left out."""
        return sum(len(_text(piece)) for piece in self._head)


def _first_bytes(text: str, limit: int) -> str:
    if text.isascii():
        return text[:limit]
    return text.encode("utf-8", "surrogatepass")[:limit].decode("utf-8", "ignore")


def _last_bytes(text: str, limit: int) -> str:
    if text.isascii():
        return text[-limit:] if limit > 0 else ""
    raw = text.encode("utf-8", "surrogatepass")
    return raw[len(raw) - limit :].decode("utf-8", "ignore")


@dataclass(frozen=True, slots=True)
class Rendered:
    """Everything an execution wrote."""

    output: str
    stdout: str
    stderr: str
    results: list[dict[str, Any]]
    """`{"type": "execute_result"|"display_data", "data": MIME bundle, "metadata": …}` each."""
    truncated: dict[str, Any] | None
    """`{"bytes": left out of `output`, "kept": "head and tail", "at": character where they are
    missing, "stdout": bytes, "stderr": bytes, "results": bytes}`, or None when all is there."""


@dataclass(slots=True)
class _Result:
    """A bundle that can still be updated, and its length in bytes as it arrived."""

    result: dict[str, Any]
    length: int


class Output:
    """Collects the output of one execution."""

    def __init__(self, max_output: int) -> None:
        """Keep at most `max_output` bytes of each of `output`, `stdout`, `stderr` and the results."""
        self._limit = max_output
        self._kept = BoundedText(max_output)
        self._screen = _Terminal(self._kept.append)
        self._stdout = BoundedText(max_output)
        self._stderr = BoundedText(max_output)
        self._clear_next = False
        self._reset_results()
        self._results_left_out = 0

    def _reset_results(self) -> None:
        self._results: list[dict[str, Any]] = []
        self._results_size = 0
        self._shown: dict[str, list[_Slot]] = {}
        self._by_id: dict[str, list[_Result]] = {}

    def stream(self, name: str, text: str) -> None:
        """Take a `stream` message; every name but `stderr` counts as stdout."""
        if self._clear_next:
            self._clear()
        (self._stderr if name == "stderr" else self._stdout).append(text)
        self._screen.feed(text)

    def display(
        self,
        kind: ResultType,
        data: dict[str, Any],
        metadata: dict[str, Any],
        display_id: str | None = None,
        length: int | None = None,
    ) -> None:
        """Take a result or display; `length` is its size in bytes where the caller knows it."""
        if self._clear_next:
            self._clear()
        text = _plain(data)
        self._screen.fresh_line()
        slot = _Slot(text)
        self._kept.append_slot(slot)
        result = {"type": kind, "data": data, "metadata": metadata}
        if length is None:
            length = len(msgspec.json.encode(result))
        kept = self._results_size + length + _RESULT_COST <= self._limit
        if kept:
            self._results_size += length + _RESULT_COST
            self._results.append(result)
        else:
            self._results_left_out += length
        if display_id is not None and len(self._shown) < _MAX_DISPLAYS:
            self._shown.setdefault(display_id, []).append(slot)
            if kept:
                self._by_id.setdefault(display_id, []).append(_Result(result, length))

    def update(
        self, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None, length: int | None = None
    ) -> None:
        """Take an `update_display_data`; one whose display is not of this execution changes nothing."""
        if display_id is None:
            return
        if length is None:
            length = len(msgspec.json.encode(data))
        text = _plain(data)
        for slot in self._shown.get(display_id, ()):
            self._kept.resized(slot, text)
        for kept in self._by_id.get(display_id, ()):
            size_now = self._results_size + length - kept.length
            if size_now > self._limit:
                self._results_left_out += length
                continue
            self._results_size = size_now
            kept.length = length
            kept.result.update(data=data, metadata=metadata)

    def clear(self, *, wait: bool) -> None:
        """Take a `clear_output`; with `wait` it happens when the next output comes."""
        if wait:
            self._clear_next = True
        else:
            self._clear()

    def _clear(self) -> None:
        self._clear_next = False
        self._screen.clear()
        self._kept.clear()
        self._reset_results()

    def render(self) -> Rendered:
        """Give all of it."""
        self._screen.finish()
        output, stdout, stderr = self._kept.text(), self._stdout.text(), self._stderr.text()
        truncated = None
        if self._kept.left_out or self._stdout.left_out or self._stderr.left_out or self._results_left_out:
            truncated = {
                "bytes": self._kept.left_out,
                "kept": "head and tail",
                "at": self._kept.head_length(),
                "stdout": self._stdout.left_out,
                "stderr": self._stderr.left_out,
                "results": self._results_left_out,
            }
        return Rendered(output=output, stdout=stdout, stderr=stderr, results=self._results, truncated=truncated)


def _plain(data: dict[str, Any]) -> str:
    text = data.get("text/plain", "")
    if isinstance(text, list):  # the notebook format allows a list of lines
        text = "".join(map(str, text))
    if not isinstance(text, str) or not text:
        return ""
    text = strip_ansi(text)
    return text if text.endswith("\n") else text + "\n"
