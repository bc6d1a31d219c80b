"""The clock of what is unused: it never counts what the server did not see, whatever the clocks of the world do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.workspace.usage_clock import Usage

STEP = 20.0


@given(st.lists(st.integers() | st.just(float("inf")) | st.just(-float("inf"))))
def test_no_jump_counts_for_more_than_the_longest_step_or_turns_the_clock_back(jumps: list[float]) -> None:
    usage = Usage(longest_step=STEP)
    for jump in jumps:
        before = usage.clock
        usage.advance(jump)
        assert 0 <= usage.clock - before <= STEP


def test_new_and_used_sessions_are_just_used_and_missing_ones_removed() -> None:
    usage = Usage(longest_step=STEP)
    usage.found(["a", "b"], in_use=())
    usage.advance(10)
    usage.found(["a", "b", "new"], in_use=("b",))
    assert [usage.unused_for(name) for name in ("a", "b", "new")] == [10, 0, 0]
    usage.advance(5)
    assert usage.use("new")
    usage.found(["b", "new"], in_use=())
    usage.found(["a", "b", "new"], in_use=())
    assert [usage.unused_for(name) for name in ("a", "b", "new")] == [0, 5, 0]
    usage.advance(5)
    usage.forget("b")
    assert [usage.unused_for(name) for name in ("b", "new")] == [0, 5]
    assert not usage.use("never heard of")


def test_the_clock_continues_from_what_was_written() -> None:
    usage = Usage(longest_step=STEP)
    usage.found(["a"], in_use=())
    usage.advance(7.5)
    usage.found(["a", "b"], in_use=())
    again = Usage.read(usage.written().encode(), longest_step=STEP)
    again.advance(1)
    assert [again.unused_for(name) for name in ("a", "b")] == [8.5, 1]


def test_a_use_later_than_the_clock_counts_as_now() -> None:
    usage = Usage.read(b'{"clock": 5, "used": {"a": 1e300}}', longest_step=STEP)
    usage.advance(2)
    assert usage.unused_for("a") == 2


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"clock": 1}',
        b'{"clock": -1, "used": {}}',
        b'{"clock": NaN, "used": {}}',
        b'{"clock": 1e999, "used": {}}',
        b'{"clock": 1, "used": {"a": "b"}}',
        b'{"clock": 1, "used": {"a": -1}}',
        b'{"clock": 1, "used": {}, "more": 1}',
    ],
)
def test_a_damaged_file_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Usage.read(text, longest_step=STEP)
