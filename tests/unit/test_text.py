from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.text import TerminalDecoder, render_terminal, strip_ansi


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
        ("ab\x1b[9Cc\x1b[1Dd", "abd"),
        ("one\ntwo\x1b[A\rONE\ntwo", "ONE\ntwo"),
        ("bar 1\nbar 2\x1b[1A\r\x1b[Jend\n", "end\n"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]unfinished\nnext", "\nnext"),
        ("\x1b(B\x1b=\x1b>x\x1b", "x"),
        ("\x1b[?25l\x1b[?2004hx\x1b[12", "x"),
        ("a\x07b\x00c\x7fd\x85e", "abcde"),
    ],
)
def test_text_is_what_a_terminal_shows(raw: str, shown: str) -> None:
    assert render_terminal(raw) == shown


def test_lines_above_the_screen_are_final_and_all_there() -> None:
    lines = [f"line {n}\r\x1b[K{n}" for n in range(1000)]
    assert render_terminal("\n".join(lines)) == "\n".join(str(n) for n in range(1000))


def test_the_cursor_does_not_leave_the_top() -> None:
    assert render_terminal("a\nb\x1b[99A\rX") == "X\nb"


def test_stripping_leaves_all_but_the_escapes() -> None:
    assert strip_ansi("\x1b[0;31mError\x1b[0m\rx\b\tend\n") == "Error\rx\b\tend\n"
    assert strip_ansi("nothing\r\n") == "nothing\r\n"


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
def test_any_input_gives_no_more_text_and_no_control_characters(pieces: list[str]) -> None:
    raw = "".join(pieces)
    shown = render_terminal(raw)
    assert len(shown) <= len(raw)
    assert not any(ord(char) < 0x20 and char not in "\t\n" for char in shown)
    assert render_terminal(shown) == shown


@pytest.mark.parametrize(
    "piece",
    ["\x1b[2Ky", "\x1b[1Ky", "\x1b]", "\x1b[", "\x1b[9999999999", "\x1bP", "\r\x1b[999999C", "\x1b[A\n", "\b", "x\r"],
)
def test_hostile_input_is_drawn_in_linear_time(piece: str) -> None:
    # Quadratic work on this much would run into the suite's time limit.
    render_terminal("x" * 500_000 + piece * 100_000)


@given(st.text(alphabet="aé漢🎉\r\n\x1b", max_size=60), st.lists(st.integers(1, 5), max_size=60))
def test_bytes_in_pieces_are_the_same_text_as_at_once(text: str, sizes: list[int]) -> None:
    data, decoder, found = text.encode(), TerminalDecoder(), ""
    for size in sizes:
        found += decoder.decode(data[:size])
        data = data[size:]
    assert found + decoder.decode(data, final=True) == text.replace("\r\n", "\n")


def test_half_a_character_at_the_end_is_shown_as_one() -> None:
    decoder = TerminalDecoder()
    assert decoder.decode(b"a\xc3") == "a"
    assert decoder.decode(b"", final=True) == "\ufffd"
