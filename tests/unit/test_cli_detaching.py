"""Leaving a terminal."""

import pytest

from kernelbridge.cli.detaching import Keys


@pytest.mark.parametrize(
    ("pieces", "typed", "leaves"),
    [
        (["~d"], "", True),
        (["~", "d"], "", True),
        (["ls\r~d more"], "ls\r", True),
        (["a~d"], "a~d", False),
        (["~~d"], "~d", False),
        (["~x\r", "~", "d"], "~x\r", True),
        (["~\rd"], "~\rd", False),
        (["~\r~d"], "~\r", True),
        (["\x10\x11"], "\x10\x11", False),
        (["half\x03~d"], "half\x03", True),
    ],
)
def test_what_is_typed_and_who_leaves(pieces: list[str], typed: str, leaves: bool) -> None:  # noqa: FBT001
    keys, found, left = Keys(), "", False
    for piece in pieces:
        text, left = keys.take(piece)
        found += text
    assert (found, left) == (typed, leaves)


def test_a_tilde_is_only_special_at_the_beginning_of_a_line() -> None:
    keys = Keys()
    assert keys.take("~x~d") == ("~x~d", False)
    assert keys.take("a~d") == ("a~d", False)
    for beginning in "\r\n\x03\x15":
        assert Keys().take(f"a{beginning}~dmore") == (f"a{beginning}", True)
    assert Keys().take("~~d") == ("~d", False)
    assert Keys().take("~~~d") == ("~~d", False)
    waiting = Keys()
    assert waiting.take("~") == ("", False)
    assert waiting.take("d") == ("", True)
