"""One command's output is found whatever surrounds it and however it comes in pieces."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.workspace.shell.marks import CommandMarks, MarkState

NONCE = "5eed" * 8
START = f"\x1b]133;C;{NONCE}\x07".encode()


def end(status: object = 0, cwd: bytes = b"/workspace", nonce: str = NONCE, job: str = "") -> bytes:
    return f"\x1b]133;D;{nonce};{status};{job};".encode() + cwd + f"{nonce}\x07".encode()


def feed(chunks: Iterable[bytes]) -> tuple[CommandMarks, bytes]:
    marks = CommandMarks(NONCE)
    return marks, b"".join([marks.receive_data(chunk) for chunk in chunks])


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(at)]


WHOLE = b"typed echo\r\n[1]+ Done\r\n" + START + b"out\x1b[31mput \x1b]133;D;x;0;\x07 \x1b]133;" + end(7) + b"prompt"


def test_the_output_lies_between_the_marks() -> None:
    marks, output = feed([WHOLE])
    assert output == b"out\x1b[31mput \x1b]133;D;x;0;\x07 \x1b]133;"
    assert (marks.state, marks.status, marks.cwd) == (MarkState.ENDED, 7, b"/workspace")


def test_marks_may_be_split_at_any_byte() -> None:
    for cut in range(len(WHOLE)):
        marks, output = feed([WHOLE[:cut], WHOLE[cut:]])
        assert output == b"out\x1b[31mput \x1b]133;D;x;0;\x07 \x1b]133;"
        assert (marks.state, marks.status, marks.cwd) == (MarkState.ENDED, 7, b"/workspace")
    marks, output = feed(WHOLE[i : i + 1] for i in range(len(WHOLE)))
    assert (marks.state, marks.status, marks.cwd) == (MarkState.ENDED, 7, b"/workspace")
    assert output == b"out\x1b[31mput \x1b]133;D;x;0;\x07 \x1b]133;"


_BITS = st.sampled_from(
    [
        b"\x1b",
        b"\x1b]133;",
        b"\x1b]133;C;\x07",
        b"\x1b]133;D;0;/\x07",
        START[:-3],
        end()[:30],
        end(nonce="0" * 32),
        b"\x07",
    ]
)


@given(
    st.lists(st.binary(max_size=9) | _BITS, max_size=12),
    st.lists(st.binary(max_size=9) | _BITS, max_size=12),
    st.binary(max_size=40).filter(lambda cwd: b"\r" not in cwd),
    st.integers(0, 255),
    st.lists(st.integers(0, 10_000), max_size=30),
)
def test_any_noise_any_output_any_directory(
    noise: list[bytes], output: list[bytes], cwd: bytes, status: int, cuts: list[int]
) -> None:
    data = b"".join(noise) + START + b"".join(output) + end(status, cwd.replace(b"\n", b"\r\n")) + b"".join(noise)
    marks, found = feed(pieces(data, cuts))
    assert found == b"".join(output)
    assert (marks.state, marks.status, marks.cwd) == (MarkState.ENDED, status, cwd or None)


def test_output_is_not_held_back_without_need() -> None:
    marks, output = feed([START + b"progress \x1b"])
    assert output == b"progress "
    assert marks.receive_data(b"[K") == b"\x1b[K"
    assert marks.receive_data(b"\x1b]133;") == b""
    assert marks.take_rest() == b"\x1b]133;"
    assert marks.take_rest() == b""


def test_an_end_without_a_start_is_a_refusal() -> None:
    marks, output = feed([b"bash: __kb_begin: command not found\r\n", end(127)])
    assert (marks.state, output) == (MarkState.REFUSED, b"")


@pytest.mark.parametrize("status", ["", "-1", "1234", "x", "²"])
def test_a_status_that_is_none_is_unknown(status: str) -> None:
    marks, _ = feed([START, end(status)])
    assert (marks.state, marks.status) == (MarkState.ENDED, None)


def test_an_endless_directory_name_costs_no_memory() -> None:
    marks, _ = feed([START, end()[:-40], *[b"x" * 65536] * 100, f"{NONCE}\x07".encode()])
    assert (marks.state, marks.status, marks.cwd) == (MarkState.ENDED, 0, None)
    assert len(marks._payload) <= 8192


@pytest.mark.parametrize(("job", "left"), [("", False), ("123", True), ("x", False)])
def test_a_job_that_is_left_is_told(job: str, left: bool) -> None:  # noqa: FBT001 - as in the list
    marks, _ = feed([START, end(job=job)])
    assert (marks.state, marks.left_job, marks.cwd) == (MarkState.ENDED, left, b"/workspace")


def test_what_comes_behind_the_end_is_kept_but_not_without_a_limit() -> None:
    whole = START + b"out" + end(job="7") + b"late\r\n" + end() + b"later"
    for cut in range(len(whole)):
        marks, output = feed([whole[:cut], whole[cut:]])
        assert (output, bytes(marks.after_end)) == (b"out", b"late\r\n" + end() + b"later")
    marks, _ = feed([START, end(job="7"), *[b"x" * 65536] * 100])
    assert len(marks.after_end) == 1 << 20
