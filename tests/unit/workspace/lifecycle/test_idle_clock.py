"""The idle clock, which is told the time."""

from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.workspace.lifecycle.pausing import IdleClock

LIMIT = 10.0


def test_it_counts_from_the_last_use() -> None:
    clock = IdleClock(LIMIT)
    clock.touch(100)
    assert clock.left(103, busy=False) == 7
    clock.touch(105)
    assert clock.left(114, busy=False) == 1
    assert clock.left(115, busy=False) == 0


def test_a_session_in_which_something_runs_is_never_idle() -> None:
    clock = IdleClock(LIMIT)
    clock.touch(0)
    assert clock.left(1000, busy=True) == LIMIT
    assert clock.left(1009, busy=False) == 1


@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from(["use", "look", "look while busy"])), max_size=50))
def test_it_is_idle_after_exactly_its_limit_without_any_use(steps: list[tuple[float, str]]) -> None:
    clock, now, used = IdleClock(LIMIT), 0.0, 0.0
    clock.touch(now)
    for pause, what in steps:
        now += pause
        if what != "look":
            used = now
        if what == "use":
            clock.touch(now)
        else:
            left = clock.left(now, busy=what == "look while busy")
            assert (left <= 0) == (used + LIMIT <= now)
