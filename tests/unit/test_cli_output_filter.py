"""What a program in a sandbox may send to the terminal of a person."""

import pytest

from kernelbridge.cli.output_filter import OutputFilter

QUESTIONS = [
    *("\x1b[c", "\x1b[>0c", "\x1b[=c", "\x1bZ", "\x05", "\x1b[>q"),  # who it is
    *("\x1b[6n", "\x1b[?6n", "\x9b6n", "\x1b[x", "\x1b[1$w", "\x1b[?1;1;0S"),  # how it is
    *("\x1b[?2026$p", "\x1b[?u", "\x1b[?4m", "\x1b[?2048h", "\x1b[?7;2031h"),  # modes
    *("\x1b[14t", "\x1b[021t", "\x1b[21;0t", "\x1b[13;2t", "\x9b21t"),  # its size and title
    *("\x1b]11;?\x07", "\x1b]10;?;?\x1b\\", "\x1b]4;1;?\x07", "\x1b]4;1;#fff;2;?\x07", "\x9d11;?\x9c"),  # colours
    *("\x1bP$qm\x1b\\", "\x1bP1$qm\x1b\\", "\x1bP+q544e\x1b\\"),  # settings
    *("\x1b]50;?\x07", "\x1b]1337;ReportCellSize\x07"),
    "\x1b[1;1;1;1;9;9*y",  # a checksum of what it shows
    *("\x1b_Gi=31,a=q;AAAA\x1b\\", "\x1b_Gi=31,s=1,v=1,a=T;AAAA\x1b\\"),  # whether it shows pictures
]
ORDERS = [
    *(
        "\x1b]52;c;?\x07",
        "\x1b]52;c;aGFja2Vk\x07",
        "\x1b]052;c;aGFja2Vk\x07",
        "\x1b]1337;Copy=:aGFja2Vk\x07",
    ),  # clipboard
    *("\x1b[5i", "\x1b]1337;File=name=eA==:AAAA\x07", "\x1b_Ga=T,t=f;L2V0Yy9wYXNzd2Q=\x1b\\"),  # prints, saves, reads
    "\x1bPtmux;x\x1b\\",
]


@pytest.mark.parametrize("sequence", QUESTIONS + ORDERS)
@pytest.mark.parametrize("keys", [False, True])
def test_a_question_or_an_order_is_removed(sequence: str, keys: bool) -> None:  # noqa: FBT001
    assert OutputFilter(keys=keys).take(f"a{sequence}b") == "a\x18b"
    for cut in range(len(sequence)):
        text = OutputFilter(keys=keys)
        pieces = f"a{sequence[:cut]}", sequence[cut:], "b"
        assert "".join(map(text.take, pieces)) == "a\x18b", cut


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[6\x07n", "\x18\x07n"),
        ("\x1b[\n6n", "\x18\n6n"),
        ("\x1b]52;c;aGFj\x1b[31ma2Vk\x07", "\x18\x1b[31ma2Vk\x07"),
        ("\x1b\x1b[c", "\x18\x18"),
        ("\x1b[\x1b[c", "\x18\x18"),
    ],
)
def test_a_sequence_with_another_in_it_is_none(text: str, shown: str) -> None:
    assert OutputFilter().take(text) == shown


def test_what_is_left_of_two_questions_is_none() -> None:
    text = OutputFilter()
    shown = text.take("\x1b\x1b[c[c") + text.take("\x1b\x1b[c") + text.take("[c")
    assert "\x1b[c" not in shown


def test_the_beginning_of_a_sequence_waits_until_nothing_follows() -> None:
    text = OutputFilter()
    assert (text.take("a\x1b]0;ti"), text.take("tle\x07b"), text.end()) == ("a", "\x1b]0;title\x07b", "")
    assert (text.take("a\x1b["), text.end(), text.take("c")) == ("a", "\x1b[", "c")


def test_a_string_without_end_is_given_up() -> None:
    text = OutputFilter()
    shown = text.take("\x1bP") + "".join(text.take("x" * (1 << 16)) for _ in range(32)) + text.take("on")
    assert shown == "\x18on"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "\x1b[1;31mred\x1b[m",
            "\x1b[38:2::1:2:3m",
            "\x1b[2J\x1b[3;4H",
            "\x1b[?25l",
            "c n q",
            "\ta\r\n\b",
            "\x1b[?1049h",
        ),
        *(
            "\x1b]0;Zürich\x07",
            "\x1b]8;;https://x/?a=1\x1b\\link\x1b]8;;\x1b\\",
            "\x1b]11;#000000\x07",
            "\x1b(B\x1b7\x1bM",
        ),
        *("\x1b_Ga=T,f=100,m=1;AAAA\x1b\\\x1b_Gm=0;AA==\x1b\\", "\x1b]1337;File=size=3;inline=1:AAAA\x07"),
        "\x1bP0;1;8q#0;2;0;0;0\n#0!10~\x1b\\",
    ],
)
def test_what_is_harmless_stays(text: str) -> None:
    assert OutputFilter().take(text) == text
    one_by_one = OutputFilter()
    assert "".join(map(one_by_one.take, text)) == text


@pytest.mark.parametrize(
    "text", ["\x1b[?1h\x1b=", "\x1b[?1000;1006h", "\x1b[?2004h", "\x1b[>4;2m", "\x1b[>1u", "\x1b[<u"]
)
def test_what_keys_send_is_changed_only_by_programs_that_get_them(text: str) -> None:
    assert OutputFilter(keys=True).take(text) == text
    assert set(OutputFilter().take(text)) == {"\x18"}
