"""What a terminal replays begins where an emulator can begin."""

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.workspace.terminals import scrollback
from kernelbridge.workspace.terminals.scrollback import CONTEXT, LIMIT, Replay


def replayed(*pieces: str) -> tuple[str, int]:
    kept = Replay()
    for piece in pieces:
        kept.append(piece)
    return kept.latest()


def test_all_of_it_while_it_is_short() -> None:
    assert replayed("grüße ", "\x1b[31mred\x1b[0m") == ("grüße \x1b[31mred\x1b[0m", 0)
    assert replayed() == ("", 0)


def test_the_latest_of_what_is_long() -> None:
    text, left_out = replayed("a" * 1000, "b" * LIMIT)
    assert (text, left_out) == ("b" * LIMIT, 1000)


def test_no_character_is_cut() -> None:
    text, left_out = replayed("é" * LIMIT, "x")
    assert text == "é" * (LIMIT // 2 - 1) + "x"
    assert left_out == LIMIT + 2


@pytest.mark.parametrize(
    "sequence",
    [
        "\x1b[38;5;123m",
        "\x1b]0;a title\x07",
        "\x1b]8;;http://x/ü\x1b\\",
        "\x1bP+q544e\x1b\\",
        "\x1b(B",
        "\x1b7",
        "\x1b[?1049h",
    ],
)
def test_no_escape_sequence_is_cut(sequence: str) -> None:
    size = len(sequence.encode())
    for inside in range(1, size):
        text, left_out = replayed("o" * 5000 + sequence + "n" * (LIMIT - inside))
        assert text == "n" * (LIMIT - inside), inside
        assert left_out == 5000 + size
    text, _ = replayed("o" * 5000 + sequence + "n" * LIMIT)
    assert text == "n" * LIMIT
    text, _ = replayed("o" * 5000 + sequence + "n" * (LIMIT - size))
    assert text == sequence + "n" * (LIMIT - size)


def test_a_sequence_that_never_ends_hides_nothing() -> None:
    text, _ = replayed("\x1b]0;" + "n" * LIMIT)
    assert text == "n" * LIMIT


def test_a_string_ends_where_the_next_sequence_begins() -> None:
    text, _ = replayed("\x1b]0;" + "t" * 100 + "\x1b[1m" + "n" * (LIMIT - 50))
    assert text == "\x1b[1m" + "n" * (LIMIT - 50)


def test_what_is_kept_is_bounded() -> None:
    kept = Replay()
    for _ in range(100):
        kept.append("x" * (LIMIT // 10))
    assert len(kept._kept) <= LIMIT + CONTEXT + scrollback._SLACK
    text, left_out = kept.latest()
    assert len(text) == LIMIT
    assert left_out == 10 * (LIMIT // 10) * 10 - LIMIT


PIECES = st.lists(
    st.one_of(
        st.text("ab é€\U0001f600\r\n", min_size=1),
        st.sampled_from(["\x1b[1;31m", "\x1b[m", "\x1b[2J", "\x1b[5;5H", "\x1b]2;t\x07", "\x1bM", "\x1b[K"]),
    ),
    min_size=1,
)


@given(PIECES, st.integers(1, 200))
def test_an_emulator_shows_the_end_of_it_as_it_was(pieces: list[str], limit: int) -> None:
    """A replay shows no piece of a sequence as text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrollback, "LIMIT", limit)
        text, left_out = replayed(*pieces)
    whole = "".join(pieces)
    assert whole.endswith(text)
    assert left_out == len(whole.encode()) - len(text.encode())
    screen = pyte.Screen(80, 24)
    pyte.Stream(screen).feed(text)
    shown = set("".join(cell.data for line in screen.buffer.values() for cell in line.values()))
    assert shown <= set("ab é€\U0001f600")
