"""Leaving a terminal, and questions in what is replayed."""

import pytest

from kernelbridge.cli.detaching import Keys, WithoutQuestions


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


@pytest.mark.parametrize(
    "question",
    [
        "\x1b[c",
        "\x1b[>0c",
        "\x1b[=c",
        "\x1b[6n",
        "\x1b[?6n",
        "\x1b[>q",
        "\x1b[?2026$p",
        "\x1b[?u",
        "\x1b[14t",
        "\x1b[21t",
        "\x1b]11;?\x07",
        "\x1b]10;?\x1b\\",
        "\x1b]4;1;?\x07",
        "\x1b]52;c;?\x07",
        "\x1bP$qm\x1b\\",
        "\x1bP+q544e\x1b\\",
        "\x1b]52;c;aGFja2Vk\x07",
        "\x1b_Gi=31,a=q;AAAA\x1b\\",
        "\x05",
        "\x9b6n",
        "\x1b[x",
    ],
)
def test_a_question_is_removed(question: str) -> None:
    assert WithoutQuestions().take(f"a{question}b") == "a\x18b"
    for cut in range(len(question)):
        text = WithoutQuestions()
        pieces = f"a{question[:cut]}", question[cut:], "b"
        assert "".join(map(text.take, pieces)) == "a\x18b", cut


def test_what_is_left_of_two_questions_is_none() -> None:
    text = WithoutQuestions()
    shown = text.take("\x1b\x1b[c[c") + text.take("\x1b\x1b[c") + text.take("[c")
    assert "\x1b[c" not in shown


def test_the_beginning_of_a_sequence_waits_until_nothing_follows() -> None:
    text = WithoutQuestions()
    assert (text.take("a\x1b]0;ti"), text.take("tle\x07b"), text.end()) == ("a", "\x1b]0;title\x07b", "")
    assert (text.take("a\x1b["), text.end(), text.take("c")) == ("a", "\x1b[", "c")


@pytest.mark.parametrize("text", ["\x1b[1;31mred\x1b[m", "\x1b[2J\x1b[3;4H", "\x1b]0;title\x07", "\x1b[?25l", "c n q"])
def test_what_is_no_question_stays(text: str) -> None:
    assert WithoutQuestions().take(text) == text


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
