"""What programs write to a terminal: the text of any bytes is bounded, without control characters, and final."""

from __future__ import annotations

import unicodedata
from unittest import mock

from kernelbridge import terminal_text
from kernelbridge.terminal_text import (
    COLUMNS,
    HEIGHT,
    REACH,
    WIDTH,
    Screen,
    TerminalDecoder,
    drawn,
    strip_ansi,
    stripped,
)

FEW_CELLS = 512
"""The limit of cells with which a small input is drawn as a large one."""
PIECES = 16
"""How many pieces an input has at most: the screen is looked at after each."""

SEEDS = (
    b"plain\ttext\r\nand \xe6\xbc\xa2\xe5\xad\x97\n",
    b"\x01 50%\r\x1b[K100%\n",
    b"\x03\x1b[1;31mred\x1b[0m\x1b[2Kx\x1b[1K\x1b[3D\x1b[9C",
    b"\x07one\ntwo\x1b[A\rONE\x1b[B\x1b[2J\x1b[H\x1b[5;10Hx\x1b[J\x1b[1J",
    b"\x05a\x1b7\n\x1b8\x1bM\x1bD\x1bE\x1b[s\x1b[u\x1b[3@\x1b[2P\x1b[4X\x1b[255G\x1b[7`\x1b[9d\x1b[2e\x1b[3a\x1b[2E\x1b[2F",
    b"\x02e\xcc\x81\xcc\x81 \xe6\xbc\xa2\b\b\x08x\t\t\x1b[4Gy",
    b"\x09\x1b]0;a title\x07\x1b]8;;u\x1b\\\x1bP1;2|x\x1b\\\x1b(B\x1b=\xc2\x9b3C\x1b[12",
    b"\x04\x1b[999;999Hz\x1b[999A\x1b[999B\x1b[f\xff\xfe\x80",
    b"\x06" + b"line\n" * 80 + b"\x1b[99Aup",
    b"\x08" + b"x\x1b[250Cy\n" * 20,
)

TOKENS = (
    *(b"\x1b[" + final.encode() for final in "ABCDEFGHJKPX@adefsu`"),
    *(b"\x1b", b"\x1b]", b"\x1b\\", b"\x07", b"\xc2\x9b", b"255", b"999;999", b"\r\n", b"\r", b"\t", b"\b", b"\n" * 64),
    *("漢".encode(), "\u0301".encode(), "\u200d".encode(), "\xad".encode(), b"\xff", b" " * 200),
)


def fuzz(data: bytes) -> None:
    """Draw bytes at once and in pieces, with the usual number of cells and with few."""
    size = max(data[0] if data else 0, len(data) // PIECES) + 1
    text = TerminalDecoder().decode(data, final=True)
    decoder = TerminalDecoder()
    pieces = [decoder.decode(data[at : at + size]) for at in range(0, len(data), size)]
    pieces.append(decoder.decode(b"", final=True))
    assert "".join(pieces) == text

    shown = "".join(drawn(text))
    _check_text(shown, text)
    assert "".join(drawn(shown)) == shown
    in_pieces = draw(pieces)
    _check_text(in_pieces, text)
    assert in_pieces == shown or not _keeps_columns(text)
    assert "".join(stripped(text)) == strip_ansi(text)
    with mock.patch.object(terminal_text, "CELLS", FEW_CELLS):
        _check_text(draw(pieces), text)


def draw(pieces: list[str]) -> str:
    """Draw pieces as they arrive, and look at the screen after each."""
    parts: list[str] = []
    screen = Screen(parts.append)
    for piece in pieces:
        screen.feed(piece)
        steps = sum(1 for _ in screen.draw())
        assert steps <= len(piece) + 2
        assert not screen.undrawn
        check_screen(screen)
    screen.finish()
    assert (screen._rows, screen._plain, screen.pending()) == (None, [], "")
    return "".join(parts)


def check_screen(screen: Screen) -> None:
    """Check where the cursor is, the lines and cells that it can reach, and what is kept of a sequence."""
    assert len(screen._sequences._held) <= terminal_text._HELD
    assert screen._plain_length == sum(map(len, screen._plain)) < 2 * terminal_text.CELLS
    rows = screen._rows
    if rows is None:
        return
    assert screen._plain == []
    assert 1 <= len(rows) < 2 * REACH + HEIGHT + 1
    assert 0 <= screen._top <= 2 * REACH
    assert 0 <= screen._at < max(len(rows), screen._top + HEIGHT)
    length = len(rows[screen._at]) if screen._at < len(rows) else 0
    assert 0 <= screen._col <= max(COLUMNS + WIDTH, length + terminal_text._TAB)
    assert sum(map(len, rows)) <= screen._written <= terminal_text.CELLS
    for row in rows:
        assert isinstance(row, str) or not row or row[0]
        assert max(map(len, row), default=0) <= terminal_text._MARKS


def _keeps_columns(text: str) -> bool:
    """Whether no character changes its width when others are inserted before it, as tabs and lone accents do."""
    return not any(char == "\t" or unicodedata.category(char) in terminal_text._NO_WIDTH for char in text)


def _check_text(shown: str, text: str) -> None:
    assert len(shown) <= 64 * len(text)
    assert not terminal_text.has_control(shown)
