from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge import terminal_text
from kernelbridge.terminal_text import (
    CELLS,
    COLUMNS,
    HEIGHT,
    WIDTH,
    Screen,
    TerminalDecoder,
    drawn,
    strip_ansi,
    stripped,
)


def render(text: str) -> str:
    return "".join(drawn(text))


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("", ""),
        ("plain\ttext\nü 漢字 🎉\n", "plain\ttext\nü 漢字 🎉\n"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("a\r\r\nb", "a\nb"),
        ("12345\rab", "ab345"),
        ("  0%\r 50%\r100%\n", "100%\n"),
        ("abc\b\bX", "aXc"),
        ("abc\b \b", "ab "),
        ("\b\bx", "x"),
        ("\x1b[1;31mred\x1b[0m\n", "red\n"),
        ("\x1b[38;2;1;2;3mtrue\x1b[m colour", "true colour"),
        ("downloading\r\x1b[Kdone\n", "done\n"),
        ("downloading\x1b[2K\rdone\n", "done\n"),
        ("abc\x1b[2Kd", "   d"),
        ("abcdef\x1b[3D\x1b[1Kx", "   xef"),
        ("abcdef\x1b[1G\x1b[0Kx", "x"),
        ("ab\x1b[9Cc\x1b[1Dd", "ab         d"),
        ("one\ntwo\x1b[A\rONE\ntwo", "ONE\ntwo"),
        ("bar 1\nbar 2\x1b[1A\r\x1b[Jend\n", "end\n"),
        ("one wait\ntwo wait\n\x1b[2A\rone done\x1b[1B\rtwo done\x1b[1B\rall\n", "one done\ntwo done\nall\n"),
        ("one\n\n\x1b[2F1st\x1b[E2nd\x1b[E", "1st\n2nd\n"),
        ("\x1b[3;5Hx\x1b[Hy", "y\n\n    x"),
        ("gone\n\x1b[H\x1b[2Jkept\n", "kept\n"),
        ("a\nb\x1b[s\nc\x1b[uB\x1b[2Bd", "a\nbB\nc\n  d"),
        ("a\nb\x1b7\nc\x1b8B", "a\nbB\nc"),
        ("a\x1bDb\x1bMc\x1bEd", "a c\ndb"),
        ("abc\r\x1b[2Pd\x1b[2@e", "de"),
        ("abcdef\r\x1b[2@x", "x abcdef"),
        ("ab\x1b[3Kc\x1b[9Jd", "abcd"),
        ("abcdef\r\x1b[2Xg", "g cdef"),
        ("\x1b[999C\x1b[3D[ok]", " " * 76 + "[ok]"),
        ("下载 50%\rab", "ab载 50%"),
        ("下载 50%\ra", "a 载 50%"),
        ("e\u0301 e\u0301\rx", "x e\u0301"),
        ("e\r\x1b[C\u0301x", "e\u0301x"),
        ("\x1b[2C\u0301x\b\by", " yx"),
        ("a\tb\rx", "x\tb"),
        ("abcdefghij\r\tX", "abcdefghXj"),
        ("a\tb\r\x1b[3Cx", "a  x    b"),
        ("━━━ 50%\r━━━━ 100%\n", "━━━━ 100%\n"),
        ("ma\x1b[01;31m\x1b[Ktch\x1b[m\x1b[Ked\n", "matched\n"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]unfinished\nnext", "\nnext"),
        ("\x1b(B\x1b=\x1b>x\x1b", "x"),
        ("\x1b[?25l\x1b[?2004hx\x1b[12", "x"),
        ("a\x07b\x00c\x7fd\x85e", "abcde"),
    ],
)
def test_text_is_what_a_terminal_shows(raw: str, shown: str) -> None:
    assert render(raw) == shown


def test_lines_above_the_screen_are_final_and_complete() -> None:
    lines = [f"line {n}\r\x1b[K{n}" for n in range(1000)]
    assert render("\n".join(lines)) == "\n".join(str(n) for n in range(1000))


def test_several_bars_are_drawn_in_place_whatever_is_above_them() -> None:
    above = "".join(f"line {n}\n" for n in range(1000))
    raw = above + "\n" * 5
    for percent in range(101):
        raw += "\x1b[5A" + "".join(f"\r\x1b[2Kbar {n}: {percent}%\n" for n in range(5))
    raw += "done\n"
    assert render(raw) == above + "".join(f"bar {n}: 100%\n" for n in range(5)) + "done\n"


def test_the_cursor_does_not_leave_the_top() -> None:
    assert render("a\nb\x1b[99A\rX") == "X\nb"


def test_stripping_removes_only_the_escapes() -> None:
    assert strip_ansi("\x1b[0;31mError\x1b[0m\rx\b\tend\n") == "Error\rx\b\tend\n"
    assert strip_ansi("nothing\r\n") == "nothing\r\n"


@pytest.mark.parametrize(
    "sequence", ["\x1b]0;" + "t" * 20_000 + "\x07", "\x1b]0;" + "t" * 20_000 + "\x1b\\", "\x1b[" + "1;" * 10_000 + "m"]
)
def test_sequences_of_any_length_are_left_out(sequence: str) -> None:
    text = "a" * 2040 + sequence + "b\n"
    assert render(text) == "".join(stripped(text)) == "a" * 2040 + "b\n"


_PIECES = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["\r", "\n", "\b", "\t", "\x1b", "[", "]", "\r\n", "\x1b[2K", "\x1b[K", "\x1b[1K", "\x1b[999C", "\x1b[3D"]
        ),
        st.sampled_from(["\x1b[9A", "\x1b[7G", "\x1b[J", "\x1b[31m", "\x1b]0;t", "\x07", "\x9b2K"]),
    ),
    max_size=60,
)


@given(_PIECES)
def test_any_input_gives_no_control_characters(pieces: list[str]) -> None:
    raw = "".join(pieces)
    shown = render(raw)
    assert len(shown) <= 64 * len(raw)
    assert not any(ord(char) < 0x20 and char not in "\t\n" for char in shown)
    assert render(shown) == shown


@given(_PIECES, st.lists(st.integers(1, 4)))
def test_pieces_of_any_size_give_the_same_text(pieces: list[str], sizes: list[int]) -> None:
    raw = "".join(pieces)
    parts: list[str] = []
    screen, rest = Screen(parts.append), raw
    for size in sizes:
        screen.feed(rest[:size])
        for _ in screen.draw():
            pass
        rest = rest[size:]
    screen.feed(rest)
    screen.finish()
    assert "".join(parts) == render(raw)


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (("one\ntwo\x1b7", " three\nfour", "\x1b8!"), "one\ntwo!three\nfour"),
        (("a\n" * 30 + "\x1b[H\x1b[J", "status 1", "\x1b[Hstatus 2"), "a\n" * 7 + "status 2"),
        (("a\n" * 30 + "b\x1b7", "c\n" * 70_000, "\x1b8d\n\x1b[J"), None),
    ],
)
def test_the_screen_stays_where_it_is_when_plain_text_arrives(pieces: tuple[str, ...], shown: str | None) -> None:
    assert draw_in_pieces(pieces) == draw_in_pieces(["".join(pieces)])
    assert shown in (None, draw_in_pieces(pieces))


def draw_in_pieces(pieces: Iterable[str]) -> str:
    parts: list[str] = []
    screen = Screen(parts.append)
    for piece in pieces:
        screen.feed(piece)
        for _ in screen.draw():
            pass
    screen.finish()
    return "".join(parts)


@pytest.mark.parametrize("erase", ["\x1b[2J", "\x1b[3J", "\x1b[2K"])
def test_a_cursor_far_to_the_right_comes_back_when_its_line_is_erased(erase: str) -> None:
    # Otherwise each further `erase` and character would cost as much as the long line.
    assert render("x" * 10_000 + erase + "y") == " " * COLUMNS + "y"


def test_tabs_count_as_the_cells_that_they_extend_over() -> None:
    screen = Screen(lambda _: None)
    screen.feed(("\t" * 1000 + "\n") * 60 + "\x1b[Ax\r" * 60)
    for _ in screen.draw():
        pass
    assert sum(map(len, screen._rows or ())) <= CELLS


_NUMBERS = st.sampled_from(["", "0", "1", "2", "3", "7"])
_ON_A_SCREEN = st.lists(
    st.one_of(
        st.text("abcdéж━", min_size=1, max_size=6),
        st.sampled_from(["\r", "\n", "\b", "\t", "\x1b7", "\x1b8", "\x1b[s", "\x1b[u", "\x1bE", "\x1b[31m"]),
        st.builds("\x1b[{}{}".format, _NUMBERS, st.sampled_from("ABCDEFGPX@ade")),
        st.builds("\x1b[{}{}".format, st.sampled_from(["", "0", "1", "2"]), st.sampled_from("JK")),
        st.builds("\x1b[{};{}{}".format, _NUMBERS, _NUMBERS, st.sampled_from("Hf")),
    ),
    max_size=30,
)


@given(_ON_A_SCREEN)
def test_text_that_fits_a_screen_is_shown_as_by_a_terminal_emulator(pieces: list[str]) -> None:
    emulator = pyte.Screen(WIDTH, HEIGHT)
    stream = pyte.Stream(emulator)
    kept = []
    for piece in pieces:
        known = {"\x1b[s": "\x1b7", "\x1b[u": "\x1b8", "\n": "\r\n", "\x1bE": "\r\x1bD"}.get(piece, piece)
        if known in {"\x1b7", "\x1b8"}:  # a stack in pyte, a single place in terminals
            emulator.savepoints[:-1] = []
            if known == "\x1b8":
                emulator.savepoints += deepcopy(emulator.savepoints)
        before = emulator.cursor.y
        stream.feed(known)
        # Text at the right edge wraps, and text below the last line scrolls.
        if emulator.cursor.x > WIDTH - 8 or (piece in {"\n", "\x1bE"} and emulator.cursor.y == before):
            break
        kept.append(piece)
    else:
        shown = [line.rstrip() for line in render("".join(kept)).expandtabs().split("\n")]
        expected = [line.rstrip() for line in emulator.display]
        assert shown + [""] * (HEIGHT - len(shown)) == expected


@pytest.mark.parametrize(
    "piece",
    [
        *("\x1b[2Ky", "\x1b[1Ky", "\x1b]", "\x1b[", "\x1b[9999999999", "\x1bP", "\r\x1b[999999C", "\x1b[A\n", "\b"),
        *("x\r", "\rx", "ab\b\b", "\x1b[s\x1b[u", "\x1b7\n\x1b8", "\x1b[999999999G", "\x1b[999B", "\x1b[2J", "\x1b[1J"),
        *(
            "\u0301",
            "\r\u0301",
            "下\b",
            "\t\r",
            "\x1b[@",
            "\x1b[P",
            "\x1b[255Gx\x1b[A",
            "\x1b[24;255Hx",
            "\x1b[H\x1b[J",
        ),
    ],
)
def test_hostile_input_is_drawn_in_linear_time(piece: str) -> None:
    # Quadratic work on this much would run into the suite's time limit.
    render("x" * 500_000 + piece * 50_000)


_LONG = "x" * 3000
_BELOW = (_LONG + "\n") * 60 + "\x1b[60A"


@pytest.mark.parametrize(
    ("first", "piece", "at_most"),
    [
        # Each drawn piece ends before the end of a line of any length …
        *(("", "\x1b[999999999C" + "\u2500" * length + "\b", CELLS) for length in (2033, 2034, 2035, 2036, 5000)),
        ("", "\x1b[999999999C" + _LONG + "\r", CELLS),
        ("", "\x1b[999999999C" + _LONG + "\x1b[2D", CELLS),
        # … or above lines that are long.
        (_BELOW, "\x1b[999999999C" + _LONG + "\b", CELLS),
        (_BELOW, _LONG + "\x1b[B", CELLS),
        (_BELOW, _LONG * 2 + "\x1b[B" + _LONG * 2 + "\x1b[A", CELLS),
        (_BELOW, "\x1b[999999999C" + _LONG + "\n\x1b[A", CELLS),
        ("", "\x1b[999C\t" * 9 + "\x1b[B", CELLS),
    ],
)
def test_what_the_cursor_can_reach_is_bounded(first: str, piece: str, at_most: int) -> None:
    parts: list[str] = []
    screen, kept, fed = Screen(parts.append), 0, 0
    screen.feed(first)
    while fed < 4 * CELLS:
        screen.feed(piece * 8)
        fed += len(piece) * 8
        for _ in screen.draw():
            kept = max(kept, sum(map(len, screen._rows or ())) + sum(map(len, screen._plain)))
    assert kept <= at_most
    screen.finish()
    assert "\x1b" not in "".join(parts)


def test_text_that_is_too_long_for_the_cursor_is_not_lost() -> None:
    # The next piece overwrites the last character of each piece.
    piece = "\x1b[999999999C" + "x" * 2034 + "\b"
    shown = render(piece * 500)
    assert 500 * 2033 <= shown.count("x") <= 500 * 2034


def test_a_screen_is_passed_on_in_small_parts() -> None:
    parts: list[str] = []
    screen, longest = Screen(parts.append), 0
    for number in range(60):
        screen.feed(f"\r{number % 10}" + "x" * 4000 + "\n\x1b[A\x1b[B")
    for _ in screen.draw():
        pass
    parts.clear()
    screen.feed("\rend")
    for _ in screen.finishing():
        longest = max(longest, sum(map(len, parts)))
        parts.clear()
    assert 0 < longest <= 1 << 15
    assert "".join(parts) == "end"


def test_text_that_arrives_while_a_screen_is_passed_on_is_not_lost() -> None:
    parts: list[str] = []
    screen = Screen(parts.append)
    screen.feed(("x" * 20_000 + "\n") * 5 + "\x1b[A\x1b[B")
    work = screen.finishing()
    while not parts:
        next(work)
    screen.feed("\rlate")
    for _ in work:
        pass
    assert "".join(parts) == ("x" * 20_000 + "\n") * 5 + "late"


@given(st.text(alphabet="aé漢🎉\r\n\x1b", max_size=60), st.lists(st.integers(1, 5), max_size=60))
def test_bytes_in_pieces_decode_to_the_same_text(text: str, sizes: list[int]) -> None:
    data, decoder, found = text.encode(), TerminalDecoder(), ""
    for size in sizes:
        found += decoder.decode(data[:size])
        data = data[size:]
    assert found + decoder.decode(data, final=True) == text.replace("\r\n", "\n")


def test_half_a_character_at_the_end_is_shown_as_one() -> None:
    decoder = TerminalDecoder()
    assert decoder.decode(b"a\xc3") == "a"
    assert decoder.decode(b"", final=True) == "\ufffd"


def test_the_reach_of_the_cursor_begins_with_a_whole_line() -> None:
    assert terminal_text._final("\na") == 0
    assert terminal_text._final("ab") == 0
    lines = "x\n" * (terminal_text.REACH + 5)
    assert terminal_text._final(lines) == 2 * 6
