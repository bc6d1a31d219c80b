r"""The text that a terminal would have shown, as plain text (pure).

Programs write for a terminal: colours, progress bars that overwrite their lines, text that is erased again. A client of
the documented protocol gets text. So the output is drawn on a screen, and the screen is read: by `Screen` as the output
arrives, in pieces of any size, and by `drawn` for a whole text.

Understood: `\n`, `\r`, `\b`, tabs; CSI `A` to `H`, `a`, `d`, `e`, `f`, `` ` `` and ESC `D`, `E`, `M` (moves); CSI `J`,
`K`, `X` (erase), `@`, `P` (insert and delete characters); CSI `s`, `u` and ESC `7`, `8` (save and restore the cursor).
All other control sequences and control characters are removed. For programs that move to an edge, the screen has
`HEIGHT` lines and `WIDTH` columns; lines are as long as they are written, and do not wrap.

Each character costs a bounded amount of work, whatever was written before it. Generators yield after a few thousand
characters at most, so that the caller can do other work in between (`aio/turns.py`).
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

HEIGHT = 24
WIDTH = 80
REACH = 64
"""Lines that the cursor can move up, at least; older ones are final, as in a terminal's scrollback."""
COLUMNS = 256
"""Largest column that a program can move to; a larger number means the right edge of the screen.

Also the bound for the cost of erasing, inserting and deleting characters.
"""
CELLS = 1 << 18
"""Characters that the cursor can reach. Of more, the oldest are final, also within a line that is so long."""

_PLAIN = 1 << 16  # characters that are searched for control characters at once
_PIECE = 1 << 11  # characters that are drawn before `draw` yields: one or two milliseconds, whatever they are
_JOINED = 1 << 14  # characters of rows that are passed on at once, or one row
_STRIPPED = 1 << 13  # characters from which sequences are removed at once
_HELD = 1 << 12  # characters that are kept of an unfinished escape sequence; a longer one is dropped as it arrives
_TAB = 8  # columns between tab stops
_MARKS = 32  # characters of one cell: a letter and its combining marks
_WIDE = frozenset("WF")
_NO_WIDTH = frozenset({"Mn", "Me", "Cf"})

_STRING = r"\x1b[\]PX^_]"  # OSC, DCS, SOS, PM, APC: a string with its terminator
_ESCAPE = (
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: cursor, colour, modes
    rf"|{_STRING}[^\x07\x18\x1a\x1b\n]*(?:\x07|\x1b\\)?"
    r"|\x1b[ -/]+[0-~]?"  # character sets and the like
    r"|\x1b[0-Z\\^-~]?"  # a single function
)
# The alternatives match different texts and none can fail late, so no input causes backtracking.
_ANY_ESCAPE = re.compile(_ESCAPE)
_MOVE = r"(?:\x1b\[|\x9b)(?P<first>[0-9]{0,9})(?:;(?P<second>[0-9]{0,9}))?[0-9;]*(?P<final>[@-HJKPXadefsu`])"
_FUNCTION = r"\x1b(?P<function>[78DEM])"
_INVISIBLE = re.compile(rf"(?!(?:\x1b\[|\x9b)[0-9;]*[@-HJKPXadefsu`]|\x1b[78DEM])(?:{_ESCAPE})")
_UNFINISHED = re.compile(rf"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*|{_STRING}[^\x07\x18\x1a\x1b\n]*\x1b?|\x1b[ -/]*)\Z")
_CSI_REST = re.compile(r"[0-?]*[ -/]*")
_STRING_REST = re.compile(r"[^\x07\x18\x1a\x1b\n]*")
_ERASED_NOTHING = re.compile(r"\x1b\[0?[JK]")  # at the end of the text, where `grep --color` writes it often
# Characters of one column: Latin, Greek, Cyrillic, and those of progress bars. All others are checked one by one.
_SIMPLE = re.compile(
    r"[\x20-\x7e\xa1-\xac\xae-\u02ff\u0370-\u0482\u048a-\u052f\u2010-\u2027\u2190-\u22ff\u2500-\u25fc\u2800-\u28ff]*"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROL_BYTES = bytes((*range(9), *range(11, 32), 127))
_TOKEN = re.compile(rf"(?P<text>[^\x00-\x1f\x7f-\x9f]+)|(?P<control>\n+|\r+|\x08+|\t)|{_MOVE}|{_FUNCTION}")


class TerminalDecoder:
    r"""Decodes the bytes of a terminal, in pieces of any size; line ends become `\n`."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._return = ""

    def decode(self, data: bytes, *, final: bool = False) -> str:
        """Return the text of the next piece; an unfinished character or line end is kept for the next call."""
        text = self._return + self._decoder.decode(data, final)
        self._return = ""
        if "\r" in text:
            if text.endswith("\r") and not final:
                text, self._return = text[:-1], "\r"
            text = text.replace("\r\n", "\n")
        return text


def strip_ansi(text: str) -> str:
    """Return `text` without its escape sequences."""
    if "\x1b" not in text and "\x9b" not in text:
        return text
    return _ANY_ESCAPE.sub("", text)


def stripped(text: str) -> Iterator[str]:
    """Yield the parts of `text` without its escape sequences: `strip_ansi` for text of any length."""
    if "\x1b" not in text and "\x9b" not in text:
        yield text
        return
    sequences = _Sequences(_ANY_ESCAPE)
    for start in range(0, len(text), _STRIPPED):
        yield sequences.remove(text[start : start + _STRIPPED])


def drawn(text: str) -> Iterator[str]:
    """Yield the parts of the text that a terminal would show for `text`; some of them are empty."""
    if not has_control(text):
        yield text
        return
    parts: list[str] = []
    screen = Screen(parts.append)
    screen.feed(text)
    for _ in screen.finishing():
        yield "".join(parts)
        parts.clear()
    yield "".join(parts)


def has_control(text: str) -> bool:
    r"""Return whether a text has control characters other than `\n` and tab."""
    if text.isascii():  # several times faster than the expression, and the usual case
        return len(text.encode().translate(None, _CONTROL_BYTES)) != len(text)
    return _CONTROL.search(text) is not None


class _Sequences:
    """Removes escape sequences from text that arrives in pieces."""

    def __init__(self, removed: re.Pattern[str]) -> None:
        """Remove the sequences that match `removed`, and keep the others."""
        self._removed = removed
        self._held = ""
        """The beginning of a sequence whose end has not arrived."""
        self._rest: re.Pattern[str] | None = None
        """Matches the rest of a sequence that is too long to be held."""

    @property
    def inside(self) -> bool:
        """Whether the next piece may begin inside a sequence."""
        return bool(self._held) or self._rest is not None

    def remove(self, text: str) -> str:
        """Return the next piece of text without sequences; an unfinished one is held for the next call."""
        if self._held:
            text, self._held = self._held + text, ""
        if self._rest is not None:
            text = self._skip(text, self._rest)
        if "\x1b" not in text and "\x9b" not in text:
            return text
        # Only the last sequence can be unfinished, or one whose terminator begins at the end of the text.
        if (unfinished := _UNFINISHED.search(text, max(0, text.rfind("\x1b", 0, -1)))) is not None:
            text, self._held = text[: unfinished.start()], unfinished[0]
            if len(self._held) > _HELD:
                self._drop_held()
        return self._removed.sub("", text)

    def _drop_held(self) -> None:
        """Drop a sequence that is too long, and skip its rest when that arrives."""
        string = self._held[0] == "\x1b" and self._held[1] in "]PX^_"
        self._rest = _STRING_REST if string else _CSI_REST
        self._held = "\x1b" if string and self._held.endswith("\x1b") else ""

    def _skip(self, text: str, rest: re.Pattern[str]) -> str:
        """Return the text after the rest of a long sequence."""
        end = 0 if (found := rest.match(text)) is None else found.end()
        if end == len(text):
            return ""
        if rest is _STRING_REST and text[end] == "\x1b":
            if end + 1 == len(text):
                self._held = "\x1b"
                return ""
            end += 2 if text[end + 1] == "\\" else 0
        elif text[end] == "\x07" or (rest is _CSI_REST and "@" <= text[end] <= "~"):
            end += 1
        self._rest = None
        return text[end:]


_Row = str | list[str]
"""A line: a text until it is written to, then a list of cells. A cell is a character with its combining marks. It is
empty if the tab or wide character before it extends over it."""


class Screen:
    """Draws text as it arrives, and passes on the lines that the cursor cannot reach any more.

    `settled` is called with the final text, in order. Text is added with `feed` and drawn with `draw`, `finish` or
    `fresh_line`.
    """

    def __init__(self, settled: Callable[[str], None]) -> None:
        self._settled = settled
        self.clear()

    def clear(self) -> None:
        """Start with an empty screen."""
        self._waiting: deque[str] = deque()
        self._waiting_at = 0
        self._block = ""
        """The text that is being drawn, which was the first that waited; and where to continue in it."""
        self._block_at = 0
        self._sequences = _Sequences(_INVISIBLE)
        self._return = ""
        """A carriage return that may be the first half of a line end."""
        self._plain: list[str] = []
        """The screen as long as only plain text has arrived: the cursor is at its end."""
        self._plain_length = 0
        self._rows: list[_Row] | None = None
        """The screen after something else has arrived; then `_plain` is empty."""
        self._top = 0
        """The row that is the screen's first line; a larger terminal would show those above it, too."""
        self._at = 0
        self._col = 0
        """Row and column of the cursor, which may be below the last row or after the end of its row."""
        self._saved_cursor = (0, 0)
        self._written = 0
        """An upper bound of the number of cells."""
        self._fresh = True
        """Whether the final text ends with a line end, or is empty."""

    # -- what a program writes ----------------------------------------------------

    def feed(self, text: str, *, plain: bool = False) -> None:
        """Add text that a program wrote; `plain` says that it has no control characters."""
        if not text:
            return
        # Plain text, the usual case, is added at once.
        if self._at_end and len(text) <= CELLS and (plain or not has_control(text)):
            self._add_plain(text)
        else:
            self._waiting.append(text)

    @property
    def _at_end(self) -> bool:
        """Whether only plain text has arrived, and all of it is drawn."""
        return self._rows is None and not (self.undrawn or self._inside)

    @property
    def _inside(self) -> bool:
        return bool(self._return) or self._sequences.inside

    @property
    def undrawn(self) -> bool:
        """Whether text was added that is not drawn yet."""
        return bool(self._waiting or self._block)

    def draw(self) -> Iterator[None]:
        """Draw the added text; yields often. It can be abandoned: another `draw` then continues."""
        while self.undrawn:
            if self._block:
                start, self._block_at = self._block_at, self._block_at + _PIECE
                piece = self._block[start : self._block_at]
                if self._block_at >= len(self._block):
                    self._block, self._block_at = "", 0
                self._draw_piece(piece)
            else:
                block = self._next_block()
                if not (self._inside or has_control(block)) and self._turn_plain(block):
                    self._add_plain(block)
                else:
                    self._block = block
                    continue
            yield

    def finish(self) -> None:
        """Draw the added text and pass the whole screen on. Afterwards the screen is empty."""
        for _ in self.finishing():
            pass

    def finishing(self) -> Iterator[None]:
        """Do what `finish` does; yields often. It can be abandoned: `finish` then does the rest."""
        yield from self.draw()
        while self._rows is not None and (first := self._first_rows(_JOINED)):
            self._settle_rows(first)
            yield
            yield from self.draw()  # text that was added meanwhile
        text = "".join(self._plain) if self._rows is None else "\n".join(map(_text, self._rows))
        fresh = self._fresh
        self.clear()
        self._fresh = fresh
        self._settle(text)

    def fresh_line(self) -> None:
        """Pass the whole screen on, and end the last line unless it is empty."""
        self.finish()
        if not self._fresh:
            self._settle("\n")

    def pending(self) -> str:
        """Return the text that was not passed on, if only plain text has arrived."""
        return "".join(self._plain)

    def _settle(self, text: str) -> None:
        if text:
            self._fresh = text.endswith("\n")
            self._settled(text)

    def _next_block(self) -> str:
        text, start = self._waiting[0], self._waiting_at
        if start + _PLAIN < len(text):
            self._waiting_at += _PLAIN
            return text[start : self._waiting_at]
        self._waiting.popleft()
        self._waiting_at = 0
        return text[start:]

    # -- plain text ---------------------------------------------------------------

    def _add_plain(self, text: str) -> None:
        self._plain.append(text)
        self._plain_length += len(text)
        if self._plain_length >= CELLS:
            text = "".join(self._plain)
            cut = _final(text)
            self._plain = [text[cut:]]
            self._plain_length = len(text) - cut
            self._leave_rows(text.count("\n", 0, cut))
            self._settle(text[:cut])

    def _turn_plain(self, text: str) -> bool:
        """Make the screen plain text, so that `text` can be added.

        Return False if the cursor is not at the end, or if that would cost too much.
        """
        rows = self._rows
        if rows is None:
            return True
        if self._at != len(rows) - 1 or self._col != _columns(rows[-1]):
            return False
        if sum(map(len, rows)) > 4 * len(text):
            return False
        self._plain = ["\n".join(map(_text, rows))]
        self._plain_length = len(self._plain[0])
        self._rows = None
        return True

    def _lines(self) -> list[_Row]:
        """Return the rows of the screen; plain text becomes rows."""
        if self._rows is None:
            text = "".join(self._plain)
            self._plain.clear()
            self._rows = [*text.split("\n")]
            self._at = len(self._rows) - 1
            self._written = self._plain_length
            self._plain_length = 0
            self._col = len(self._row())
            self._scroll()
        return self._rows

    # -- everything else -------------------------------------------------------------

    def _draw_piece(self, text: str) -> None:
        text = self._return + self._sequences.remove(text)
        self._return = ""
        if text.endswith("\r"):
            text, self._return = text[:-1], "\r"
        if "\r\n" in text:
            text = text.replace("\r\n", "\n")
        if self._rows is None and "\x1b" in text and not has_control(seen := _ERASED_NOTHING.sub("", text)):
            text = seen
        if not has_control(text) and self._turn_plain(text):
            self._add_plain(text)
            return
        self._lines()
        for token in _TOKEN.finditer(text):
            match token.lastgroup:
                case "text":
                    self._write(token[0])
                case "control":
                    self._control(token[0])
                case "function":
                    self._function(token["function"])
                case _:
                    self._move(int(token["first"] or 0), token["second"], token["final"])
        if self._written > CELLS:
            self._bound_cells()

    def _write(self, text: str) -> None:
        row, col = self._row(), self._col
        if col > len(row):
            self._written += col - len(row)
            row.extend([" "] * (col - len(row)))
        cells: str | list[str] = text
        if not text.isascii() and _SIMPLE.fullmatch(text) is None:
            cells = _cells(text, row, col)
        if col < len(row):
            _separate(row, col)
            _separate(row, col + len(cells))
        self._col = col + len(cells)
        row[col : self._col] = cells
        self._written += len(cells)

    def _control(self, chars: str) -> None:
        match chars[0]:
            case "\n":
                self._down(len(chars))
                self._col = 0
            case "\r":
                self._col = 0
            case "\b":
                self._col = max(0, self._col - len(chars))
            case _:
                row, stop = self._row(), (self._col // _TAB + 1) * _TAB
                if self._col >= len(row):
                    self._written += stop - len(row)
                    row.extend([" "] * (self._col - len(row)))
                    row.extend(["\t"] + [""] * (stop - self._col - 1))
                self._col = stop

    def _function(self, name: str) -> None:
        match name:
            case "7":
                self._saved_cursor = self._at, self._col
            case "8":
                self._put(*self._saved_cursor)
            case "M":
                self._put(self._at - 1, self._col)
            case _:
                self._down(1)
                self._put(self._at, 0 if name == "E" else self._col)

    def _move(self, number: int, second: str | None, final: str) -> None:
        count = max(1, number)
        match final:
            case "C" | "a":
                self._col = max(self._col, self._column(self._col + count))
            case "D":
                self._col = max(0, self._col - count)
            case "G" | "`":
                self._col = self._column(count - 1)
            case "H" | "f":
                self._put(self._top + min(count, HEIGHT) - 1, 0)
                self._col = self._column(max(1, int(second or 0)) - 1)
            case "A" | "B" | "E" | "F" | "d" | "e":
                at = self._top - 1 if final == "d" else self._at
                self._put(at - count if final in "AF" else at + count, 0 if final in "EF" else self._col)
            case "s" | "u":
                self._function("7" if final == "s" else "8")
            case "J":
                self._erase_lines(number)
            case _ if self._at < len(self._lines()):
                self._edit(self._row(), number, final)

    # -- the cursor -------------------------------------------------------------------

    def _put(self, at: int, col: int) -> None:
        """Move the cursor to a row and column, as far as it can reach them."""
        rows = self._lines()
        self._at = max(0, len(rows) - REACH, min(at, max(len(rows), self._top + HEIGHT) - 1))
        self._col = min(col, max(COLUMNS, len(rows[self._at]) if self._at < len(rows) else 0))

    def _column(self, wanted: int) -> int:
        rows = self._lines()
        length = len(rows[self._at]) if self._at < len(rows) else 0
        return wanted if wanted < max(COLUMNS, length + 1) else max(length, WIDTH - 1)

    def _down(self, lines: int) -> None:
        self._at += lines
        self._until(self._at)
        self._scroll()

    def _row(self) -> list[str]:
        """Return the cells of the cursor's line."""
        rows = self._until(self._at)
        row = rows[self._at]
        if isinstance(row, str):
            rows[self._at] = cells = _cells(row)
            self._written += len(cells) - len(row)  # tabs and wide characters
            return cells
        return row

    def _until(self, at: int) -> list[_Row]:
        rows = self._lines()
        if at >= len(rows):
            rows.extend([""] * (at + 1 - len(rows)))
        return rows

    def _scroll(self) -> None:
        rows = self._lines()
        self._top = max(self._top, len(rows) - HEIGHT)
        # Many at a time, because removing the first element of a list moves all others.
        if len(rows) >= 2 * REACH:
            self._settle_rows(len(rows) - REACH)

    def _settle_rows(self, number: int) -> None:
        rows = self._lines()
        self._settle("\n".join(map(_text, islice(rows, number))) + "\n")
        del rows[:number]
        self._at -= number
        self._leave_rows(number)

    def _leave_rows(self, number: int) -> None:
        """Count from the row after those that have just become final."""
        self._top = max(0, self._top - number)
        self._saved_cursor = max(0, self._saved_cursor[0] - number), self._saved_cursor[1]

    def _first_rows(self, cells: int) -> int:
        """Return how many of the first rows together have `cells` cells; never the last row."""
        rows = self._lines()
        first = 0
        while cells > 0 and first < len(rows) - 1:
            cells -= len(rows[first])
            first += 1
        return first

    def _bound_cells(self) -> None:
        rows = self._lines()
        total = sum(map(len, rows))
        if first := min(self._first_rows(total - CELLS // 2), self._at):
            self._settle_rows(first)
            total = sum(map(len, rows))
        if total > CELLS // 2 and self._at == 0 and self._col == len(rows[0]):
            # One long line: its beginning is final, although `\r` could return to it.
            total -= len(rows[0])
            self._settle(_text(rows[0]))
            rows[0] = []
            self._col = 0
        if total > CELLS:
            # Too much at the cursor and below: all of it is final, because otherwise nothing would ever be.
            end = "" if self._at == len(rows) - 1 else "\n"
            self._settle("\n".join(map(_text, rows)) + end)
            rows[:] = [""]
            self._top = self._at = self._col = total = 0
            self._saved_cursor = (0, 0)
        self._written = total

    # -- erasing ----------------------------------------------------------------------

    def _erase_lines(self, number: int) -> None:
        rows = self._lines()
        match number:
            case 0:
                del rows[self._at + 1 :]
                if self._at < len(rows):
                    self._edit(self._row(), 0, "K")
            case 1:
                for at in range(self._top, min(self._at, len(rows))):
                    rows[at] = ""
                if self._at < len(rows):
                    self._edit(self._row(), 1, "K")
            case 2 | 3:
                del rows[self._top :]
                rows.extend([""] * (not rows))
                self._col = min(self._col, COLUMNS)

    def _edit(self, row: list[str], number: int, final: str) -> None:
        col, count = self._col, min(max(1, number), COLUMNS)
        if final == "K" and number == 0:
            _separate(row, col)
            del row[col:]
        elif final == "K" and number == 1:
            end = min(col + 1, len(row), COLUMNS)
            _separate(row, end)
            row[:end] = [" "] * end
        elif final == "K":
            if number == 2:  # noqa: PLR2004 - the whole line
                row.clear()
                self._col = min(col, COLUMNS)
        elif col < len(row) <= col + COLUMNS:
            length, end = len(row), min(col + count, len(row))
            _separate(row, col)
            if final == "@":
                row[col:col] = [" "] * count
                del row[max(COLUMNS, length) :]
                self._written += count
            else:
                _separate(row, end)
                row[col:end] = [" "] * (end - col) if final == "X" else []


def _text(row: _Row) -> str:
    return row if isinstance(row, str) else "".join(row)


def _columns(row: _Row) -> int:
    return len(row) if isinstance(row, list) or (row.isascii() and "\t" not in row) else len(_cells(row))


def _cells(text: str, row: list[str] | None = None, col: int = 0) -> list[str]:
    """Return the cells of a text. It begins at column `col` of `row`, whose last cell gets its first marks."""
    if (text.isascii() and "\t" not in text) or _SIMPLE.fullmatch(text) is not None:
        return list(text)
    cells: list[str] = []
    for char in text:
        if char == "\t":
            end = (col + len(cells)) // _TAB * _TAB + _TAB - col
            cells.append(char)
            cells.extend([""] * (end - len(cells)))
        elif unicodedata.category(char) in _NO_WIDTH and _add_mark(row, cells, col, char):
            continue
        else:
            cells.append(char)
            if unicodedata.east_asian_width(char) in _WIDE:
                cells.append("")
    return cells


def _add_mark(row: list[str] | None, cells: list[str], col: int, char: str) -> bool:
    """Add a character without width to the one before it. Return False if there is none."""
    if not cells:
        if row is None or not 0 < col <= len(row):
            return False
        cells, at = row, col - 1
    else:
        at = len(cells) - 1
    while at and not cells[at]:
        at -= 1
    if len(cells[at]) < _MARKS:
        cells[at] += char
    return True


def _separate(row: list[str], col: int) -> None:
    """Replace a wide character or tab that extends over a column by spaces."""
    if col >= len(row) or row[col]:
        return
    start = end = col
    while start and not row[start]:
        start -= 1
    while end < len(row) and not row[end]:
        end += 1
    row[start:end] = [" "] * (end - start)


def _final(text: str) -> int:
    """Return the start of the lines that the cursor can still reach."""
    at = len(text)
    for _ in range(REACH):
        at = text.rfind("\n", 0, at)
        if at < 0:
            break
    first = len(text) - CELLS // 2
    if at < first:
        at = text.find("\n", first)
        return len(text) if at < 0 else at + 1
    return at + 1
