"""The latest output of a terminal, for connections that are attached later and for a later server."""

from __future__ import annotations

import re
from typing import NamedTuple

from kernelbridge.workspace.adoption.state_file import StateFile

LIMIT = 1 << 20
"""Bytes of output that are kept for a replay."""
CONTEXT = 1 << 16
"""Bytes that are kept before those, to know whether they begin inside an escape sequence."""
_SLACK = 1 << 18
"""Bytes by which it may be longer than both before it is cut, so that cuts are rare."""

_FURTHER = 0b10
"""The upper two bits of all bytes of a character in UTF-8 but the first."""

# ECMA-48 section 5.4 (CSI), 5.6 (control strings), ECMA-35 section 13 (others). Over the bytes of UTF-8.
_SEQUENCE = re.compile(
    rb"\x1b\[[\x30-\x3f]*[\x20-\x2f]*[\x40-\x7e]"
    rb"|\x1b[\]PX^_][^\x07\x18\x1a\x1b]*(?:\x07|\x18|\x1a|\x1b\\|(?=\x1b))"
    rb"|\x1b[\x20-\x2f]*[\x30-\x7e]"
)


class Replayed(NamedTuple):
    """The latest output of a terminal."""

    text: str
    left_out: int
    """Bytes of older output that are not in `text`."""


class Replay:
    """The latest output of one terminal, at most `LIMIT` bytes."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._total = 0
        self._file: StateFile | None = None

    def keep_in(self, file: StateFile) -> None:
        """Keep the output in a file, too, after what an earlier server has kept there."""
        self.append(file.read().decode(errors="replace"))
        self._file = file

    def append(self, text: str) -> None:
        """Add output, in which there must be no half of a surrogate pair: it has no UTF-8 form."""
        data = text.encode()
        self._total += len(data)
        self._kept += data
        if len(self._kept) > LIMIT + CONTEXT + _SLACK:
            del self._kept[: len(self._kept) - LIMIT - CONTEXT]
        if self._file is not None and not self._file.append(data, LIMIT + CONTEXT + _SLACK):
            self._file.empty()
            self._file.append(bytes(self._kept), len(self._kept))

    def latest(self) -> Replayed:
        """Return it, beginning at a place where a terminal emulator can begin."""
        start = _safe_start(self._kept, len(self._kept) - LIMIT) if self._total > LIMIT else 0
        data = self._kept[start:]
        return Replayed(data.decode(), self._total - len(data))


def _safe_start(data: bytearray, cut: int) -> int:
    """Return the first place from `cut` on that is not inside a character or an escape sequence."""
    while cut < len(data) and data[cut] >> 6 == _FURTHER:
        cut += 1
    introducer = data.rfind(b"\x1b", 0, cut)
    if introducer < 0:
        return cut
    sequence = _SEQUENCE.match(data, introducer)
    # A sequence that does not end is text.
    return cut if sequence is None else max(cut, sequence.end())
