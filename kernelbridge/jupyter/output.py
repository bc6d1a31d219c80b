"""What a cell wrote, as a terminal would have shown it (pure).

`Output` takes the events of one execution in order of arrival and gives `output` (the terminal's
view of stdout, stderr and the text of results), the raw `stdout` and `stderr`, and the MIME
bundles. Every part is bounded: past the limit the first and the last half are kept and the
number of bytes between them is counted. Work is linear in what arrives, however it is cut.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import msgspec

from kernelbridge.jupyter.screen import Screen
from kernelbridge.text import strip_ansi

ResultType = Literal["execute_result", "display_data"]

_JOIN = 8192  # characters: small writes are joined, or a million of them would be a million objects
_RESULT_COST = 256  # bytes that a bundle costs beside its text: a million empty ones are not free
_MAX_DISPLAYS = 10_000  # displays of one cell that can be updated; each place where an id is shown is one


def size(text: str) -> int:
    """Give the length of `text` in bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@dataclass(slots=True)
class _Bundle:
    """The MIME bundle of a result, and its length in bytes as it arrived."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    length: int


@dataclass(slots=True, eq=False)
class _Display:
    """What is shown under one display id. All its places refer to it, so an update costs the same however many."""

    text: str = ""
    length: int = 0
    """Of `text`, in bytes."""
    tails: int = 0
    """Places in the tail that show `text`."""
    heads: int = 0
    """Places in the head that show `head_text`: as much of `text` as there is room for."""
    head_text: str = ""
    head_length: int = 0
    bundle: _Bundle | None = None
    results: int = 0
    """Results that are `bundle`."""


_Piece = str | _Display


class BoundedText:
    """Text of which at most `limit` bytes are kept: the first half and the last half."""

    def __init__(self, limit: int) -> None:
        self._half = max(limit // 2, 1)
        self.clear()

    def clear(self) -> None:
        """Forget everything, what was left out included; displays that are in it must not be used again."""
        self._head: list[_Piece] = []
        self._head_size = 0
        self._tail: deque[_Piece] = deque()
        self._tail_size = 0
        self._small: list[str] = []
        self._small_length = 0
        self._left_out = 0

    def append(self, text: str) -> None:
        """Add text at the end."""
        if not text:
            return
        self._small.append(text)
        self._small_length += len(text)
        if self._small_length >= _JOIN:
            self._join()

    def append_display(self, display: _Display) -> None:
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

    def replace(self, display: _Display, text: str) -> None:
        """Change what is shown in every place of a display; those that were left out are not brought back."""
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
        """Give the bytes that the head can still take: none once something is behind it, or missing."""
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
        # In small parts: what leaves the tail later leaves it whole, and nothing is copied twice.
        for start in range(0, len(text), _JOIN):
            part = text[start : start + _JOIN]
            self._push_tail(part, size(part))

    def _push_tail(self, piece: _Piece, length: int) -> None:
        self._tail.append(piece)
        self._tail_size += length
        self._trim()

    def _trim(self) -> None:
        """Drop from the tail's start: displays whole, text while there is enough behind it."""
        while self._tail_size > self._half:
            piece = self._tail[0]
            if isinstance(piece, str):
                length = size(piece)
                if self._tail_size - length < self._half:
                    return  # `_first_of_tail` cuts what is over
            else:
                length = piece.length
                piece.tails -= 1
            self._tail.popleft()
            self._tail_size -= length
            self._left_out += length

    def _first_of_tail(self) -> tuple[str, int]:
        """Give the text with which the tail starts, and the bytes of it that are over the limit."""
        self._join()
        if not self._tail:
            return "", 0
        piece = self._tail[0]
        if not isinstance(piece, str):
            return piece.text, 0
        over = self._tail_size - self._half
        if over <= 0:
            return piece, 0
        length = size(piece)
        kept = _last_bytes(piece, length - over)
        return kept, length - size(kept)

    def text(self) -> str:
        """Give what is kept, the head directly followed by the tail. Changes nothing."""
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
        """Bytes that are missing between head and tail."""
        return self._left_out + self._first_of_tail()[1]

    def head_length(self) -> int:
        """Give the number of characters before the place where bytes were left out."""
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


class Output:
    """Collects the output of one execution."""

    def __init__(self, max_output: int) -> None:
        """Keep at most `max_output` bytes of each of `output`, `stdout`, `stderr` and the results."""
        self._limit = max_output
        self._kept = BoundedText(max_output)
        self._screen = Screen(self._kept.append)
        self._stdout = BoundedText(max_output)
        self._stderr = BoundedText(max_output)
        self._clear_next = False
        self._rendered: Rendered | None = None
        self._reset_results()
        self._results_left_out = 0

    def _reset_results(self) -> None:
        self._results: list[tuple[ResultType, _Bundle]] = []
        self._results_size = 0
        self._displays: dict[str, _Display] = {}
        self._places = 0

    def stream(self, name: str, text: str) -> None:
        """Take a `stream` message; every name but `stderr` counts as stdout."""
        if self._rendered is not None:
            return
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
        """Take a result or display; `length` is its size in bytes where the caller knows it.

        One with the id of an earlier one replaces that too, as IPython's `DisplayHandle.display` has it.
        """
        if self._rendered is not None:
            return
        if self._clear_next:
            self._clear()
        if length is None:
            length = len(msgspec.json.encode({"type": kind, "data": data, "metadata": metadata}))
        self.update(data, metadata, display_id, length)
        self._screen.fresh_line()
        text = _plain(data)
        bundle = _Bundle(data, metadata, length)
        display = None
        if display_id is not None and self._places < _MAX_DISPLAYS:
            self._places += 1
            display = self._displays.get(display_id)
            if display is None:
                display = self._displays[display_id] = _Display(text, size(text))
            self._kept.append_display(display)
        else:
            self._kept.append(text)
        if self._results_size + length + _RESULT_COST > self._limit:
            self._results_left_out += length
            return
        if display is not None:
            if display.bundle is None:
                display.bundle = bundle
            elif display.bundle.data is not data:
                self._results_left_out += length  # there was no room for it in its earlier places
                return
            display.results += 1
            bundle = display.bundle
        self._results_size += length + _RESULT_COST
        self._results.append((kind, bundle))

    def update(
        self, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None, length: int | None = None
    ) -> None:
        """Take an `update_display_data`; one whose display is not of this execution changes nothing."""
        display = self._displays.get(display_id) if display_id is not None else None
        if display is None or self._rendered is not None:
            return
        self._kept.replace(display, _plain(data))
        if display.bundle is None:
            return
        if length is None:
            length = len(msgspec.json.encode(data))
        size_now = self._results_size + display.results * (length - display.bundle.length)
        if size_now > self._limit:
            self._results_left_out += display.results * length
            return
        self._results_size = size_now
        display.bundle.data, display.bundle.metadata, display.bundle.length = data, metadata, length

    def clear(self, *, wait: bool) -> None:
        """Take a `clear_output`; with `wait` it happens when the next output comes."""
        if self._rendered is not None:
            return
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
        """End the output and give all of it, as often as it is asked for; what comes afterwards changes nothing."""
        if self._rendered is not None:
            return self._rendered
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
        results = [{"type": kind, "data": bundle.data, "metadata": bundle.metadata} for kind, bundle in self._results]
        self._rendered = Rendered(output=output, stdout=stdout, stderr=stderr, results=results, truncated=truncated)
        return self._rendered


def _plain(data: dict[str, Any]) -> str:
    text = data.get("text/plain", "")
    if isinstance(text, list):  # the notebook format allows a list of lines
        text = "".join(map(str, text))
    if not isinstance(text, str) or not text:
        return ""
    text = strip_ansi(text)
    return text if text.endswith("\n") else text + "\n"
