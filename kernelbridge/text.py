r"""What a terminal would have shown, as plain text.

Programs write for a terminal: colours, progress bars that overwrite their line, text
taken back. A client of the documented protocol gets text, so this draws the output on a
small screen and reads it back. Pure, linear in time, and the result is never longer than the input.

Understood: `\n`, `\r`, `\b`, CSI `A` (up, within the last `_SCREEN_ROWS` lines), `C`, `D`, `G` (along
the line, never beyond its end), `J` and `K` (erase). Every other control sequence and
control character is invisible and goes; tabs stay. One character is one column: the width of East
Asian and combining characters is not looked at.
"""

from __future__ import annotations

import codecs
import re
from itertools import islice

_SCREEN_ROWS = 64
"""Lines the cursor can go back up to; older ones are final, as in a terminal's scrollback."""

_KEPT_COLUMN = 512
"""Where the cursor stays when its line is erased under it. A bound, so that erasing costs no more than it says."""

_ESCAPE = (
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: cursor, colour, modes
    r"|\x1b[\]PX^_][^\x07\x18\x1a\x1b\n]*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC: a string with its terminator
    r"|\x1b[ -/]+[0-~]?"  # character sets and the like
    r"|\x1b[0-Z\\^-~]?"  # a single function
)
# Each alternative consumes disjoint text and none can fail late, so that no input makes the scan go back.
_ANY_ESCAPE = re.compile(_ESCAPE)
_CURSOR = re.compile(r"(?:\x1b\[|\x9b)([0-9]{0,9})[0-9;]*([ACDGJK])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROL_BYTES = bytes((*range(9), *range(11, 32), 127))
_TOKEN = re.compile(rf"(?P<text>[^\x00-\x08\x0a-\x1f\x7f-\x9f]+)|(?P<escape>{_ESCAPE})|(?P<control>[\n\r\b])")


class TerminalDecoder:
    r"""Bytes of a terminal, in pieces of any size, as text: no character is split, lines end with `\n` alone."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._return = ""

    def decode(self, data: bytes, *, final: bool = False) -> str:
        """Give the text of the next piece; what may be half a character, or half a line's end, waits for the next."""
        text = self._return + self._decoder.decode(data, final)
        self._return = ""
        if "\r" in text:
            if text.endswith("\r") and not final:
                text, self._return = text[:-1], "\r"
            text = text.replace("\r\n", "\n")
        return text


def strip_ansi(text: str) -> str:
    """Remove the escape sequences and nothing else."""
    if "\x1b" not in text and "\x9b" not in text:
        return text
    return _ANY_ESCAPE.sub("", text)


def render_terminal(text: str) -> str:
    r"""Give the text that a terminal would show for `text`, lines ended by `\n`."""
    if not has_control(text):
        return text
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
    if "\x1b" in text or "\x9b" in text:
        text = _ANY_ESCAPE.sub(_keep_cursor, text)
    if not has_control(text):
        return text
    screen = _Screen()
    for token in _TOKEN.finditer(text):
        match token.lastgroup:
            case "text":
                screen.write(token[0])
            case "control":
                screen.control(token[0])
            case _:
                screen.escape(token[0])
    return screen.text()


def has_control(text: str) -> bool:
    r"""Whether a terminal would not show the text as it is: it has control characters other than `\n` and tab."""
    if text.isascii():  # several times faster than the expression, and the usual case
        return len(text.encode().translate(None, _CONTROL_BYTES)) != len(text)
    return _CONTROL.search(text) is not None


def _keep_cursor(match: re.Match[str]) -> str:
    """Drop what is invisible, colour above all: most coloured text then needs no screen."""
    return match[0] if _CURSOR.fullmatch(match[0]) else ""


class _Screen:
    """The lines the cursor can still reach, and the final text above them."""

    def __init__(self) -> None:
        self._final: list[str] = []
        self._rows: list[list[str]] = [[]]
        self._at = 0
        self._col = 0

    def write(self, text: str) -> None:
        row = self._rows[self._at]
        if self._col > len(row):
            row.extend(" " * (self._col - len(row)))
        end = self._col + len(text)
        row[self._col : end] = text
        self._col = end

    def control(self, char: str) -> None:
        if char == "\b":
            self._col = max(0, self._col - 1)
            return
        self._col = 0
        if char == "\n":
            self._at += 1
            if self._at == len(self._rows):
                self._rows.append([])
                # In blocks, because taking a list's first element moves all others.
                if self._at >= 2 * _SCREEN_ROWS:
                    self._final.extend("".join(row) for row in islice(self._rows, _SCREEN_ROWS))
                    del self._rows[:_SCREEN_ROWS]
                    self._at -= _SCREEN_ROWS

    def escape(self, sequence: str) -> None:
        found = _CURSOR.fullmatch(sequence)
        if found is None:
            return
        number = int(found[1] or 0)
        row = self._rows[self._at]
        match found[2]:
            case "A":
                self._at = max(0, self._at - max(1, number))
                self._col = min(self._col, len(self._rows[self._at]))
            case "C":
                self._col = max(self._col, min(len(row), self._col + max(1, number)))
            case "D":
                self._col = max(0, self._col - max(1, number))
            case "G":
                self._col = min(max(1, number) - 1, max(len(row), self._col))
            case "J" if number == 0:
                del row[self._col :]
                del self._rows[self._at + 1 :]
            case "K":
                self._erase(row, number)

    def _erase(self, row: list[str], number: int) -> None:
        if number == 0:
            del row[self._col :]
        elif number == 1:
            end = min(self._col + 1, len(row), _KEPT_COLUMN)
            row[:end] = " " * end
        else:
            row.clear()
            self._col = min(self._col, _KEPT_COLUMN)

    def text(self) -> str:
        return "\n".join([*self._final, *("".join(row) for row in self._rows)])
