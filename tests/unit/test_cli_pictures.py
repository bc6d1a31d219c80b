"""Pictures in terminals."""

import base64

import pytest

from kernelbridge.cli.pictures import Protocol, protocol, shown


@pytest.mark.parametrize(
    ("environ", "how"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "WezTerm"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({}, None),
    ],
)
def test_a_terminal_is_known_by_its_environment(environ: dict[str, str], how: Protocol | None) -> None:
    assert protocol(environ, is_terminal=True) == how
    assert protocol(environ, is_terminal=False) is None


@pytest.mark.parametrize("size", [1, 3072, 3073, 10_000])
def test_kitty_gets_pieces_of_which_all_but_the_last_say_that_there_is_more(size: int) -> None:
    pieces = shown(b"x" * size, "kitty").removesuffix("\n").removesuffix("\x1b\\").split("\x1b\\")
    heads, data = zip(*(piece.removeprefix("\x1b_G").split(";") for piece in pieces), strict=True)
    assert base64.b64decode("".join(data)) == b"x" * size
    assert heads[0].startswith("a=T,f=100,m=")
    assert [head[-1] for head in heads] == ["1"] * (len(heads) - 1) + ["0"]
    assert max(map(len, data)) <= 4096


def test_iterm_gets_one_sequence() -> None:
    assert shown(b"png", "iterm") == "\x1b]1337;File=inline=1;size=3:cG5n\x07\n"
