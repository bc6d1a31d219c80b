import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.errors import LimitExceeded
from kernelbridge.workspace.lifecycle.admission import FairQueue, SessionLimits
from kernelbridge.workspace.session_key import SessionKey


def test_a_user_with_many_starts_delays_others_by_one_only() -> None:
    queue: FairQueue[str] = FairQueue(1)
    assert queue.acquire("greedy", "g0")
    assert not any(queue.acquire("greedy", f"g{number}") for number in range(1, 5))
    assert not queue.acquire("late", "l1")
    assert not queue.acquire(None, "n1")
    assert [queue.release() for _ in range(7)] == ["g1", "l1", "n1", "g2", "g3", "g4", None]
    assert queue.acquire("greedy", "again")


def test_a_waiter_that_withdraws_gets_no_turn() -> None:
    queue: FairQueue[str] = FairQueue(1)
    for user, who in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2")):
        queue.acquire(user, who)
    queue.withdraw("a", "a2")
    assert len(queue) == 2
    assert queue.release() == "b1"
    assert queue.clear() == ["b2"]
    assert (len(queue), queue.release()) == (0, None)


@given(
    turns=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(["ask", "done", "withdraw", "dismiss"]), st.sampled_from("abc"))),
)
def test_turns_are_neither_lost_nor_made(turns: int, steps: list[tuple[str, str]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue(turns)
    holding: list[tuple[str, int]] = []
    waiting: list[tuple[str, int]] = []
    for number, (step, user) in enumerate(steps):
        if step == "ask":
            (holding if queue.acquire(user, (user, number)) else waiting).append((user, number))
        elif step == "done" and holding:
            holding.pop()
            following = queue.release()
            assert (following is None) == (not waiting)
            if following is not None:
                assert following == next(who for who in waiting if who[0] == following[0])
                waiting.remove(following)
                holding.append(following)
        elif step == "withdraw" and (mine := [who for who in waiting if who[0] == user]):
            queue.withdraw(user, mine[-1])
            waiting.remove(mine[-1])
        elif step == "dismiss":
            assert sorted(queue.clear()) == sorted(waiting)
            waiting.clear()
        assert len(queue) == len(waiting)
        assert len(holding) <= turns
        assert not waiting or len(holding) == turns


def test_limits_of_sessions_name_the_number_and_the_remedy() -> None:
    limits = SessionLimits(per_user=2, in_all=3)
    there = {SessionKey("a", "1"), SessionKey("a", "2")}
    limits.check(SessionKey("a", "1"), there)  # it is there
    limits.check(SessionKey("b", "1"), there)
    with pytest.raises(LimitExceeded, match="for this user: the limit is 2; close one") as caught:
        limits.check(SessionKey("a", "3"), there)
    assert caught.value.retryable
    with pytest.raises(LimitExceeded, match="on this server: the limit is 3; try again"):
        limits.check(SessionKey("b", "2"), there | {SessionKey("b", "1")})
