import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.errors import LimitExceeded
from kernelbridge.workspace.lifecycle.admission import Rota, SessionLimits
from kernelbridge.workspace.session_key import SessionKey


def test_one_who_starts_many_keeps_nobody_waiting_for_more_than_one() -> None:
    rota: Rota[str] = Rota(1)
    assert rota.ask("greedy", "g0")
    assert not any(rota.ask("greedy", f"g{number}") for number in range(1, 5))
    assert not rota.ask("late", "l1")
    assert not rota.ask(None, "n1")
    assert [rota.done() for _ in range(7)] == ["g1", "l1", "n1", "g2", "g3", "g4", None]
    assert rota.ask("greedy", "again")


def test_who_waits_no_more_gets_no_turn() -> None:
    rota: Rota[str] = Rota(1)
    for user, who in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2")):
        rota.ask(user, who)
    rota.withdraw("a", "a2")
    assert len(rota) == 2
    assert rota.done() == "b1"
    assert rota.dismiss() == ["b2"]
    assert (len(rota), rota.done()) == (0, None)


@given(
    turns=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(["ask", "done", "withdraw", "dismiss"]), st.sampled_from("abc"))),
)
def test_turns_are_neither_lost_nor_made(turns: int, steps: list[tuple[str, str]]) -> None:
    rota: Rota[tuple[str, int]] = Rota(turns)
    holding: list[tuple[str, int]] = []
    waiting: list[tuple[str, int]] = []
    for number, (step, user) in enumerate(steps):
        if step == "ask":
            (holding if rota.ask(user, (user, number)) else waiting).append((user, number))
        elif step == "done" and holding:
            holding.pop()
            following = rota.done()
            assert (following is None) == (not waiting)
            if following is not None:
                assert following == next(who for who in waiting if who[0] == following[0])
                waiting.remove(following)
                holding.append(following)
        elif step == "withdraw" and (mine := [who for who in waiting if who[0] == user]):
            rota.withdraw(user, mine[-1])
            waiting.remove(mine[-1])
        elif step == "dismiss":
            assert sorted(rota.dismiss()) == sorted(waiting)
            waiting.clear()
        assert len(rota) == len(waiting)
        assert len(holding) <= turns
        assert not waiting or len(holding) == turns


def test_limits_of_sessions_name_the_number_and_what_to_do() -> None:
    limits = SessionLimits(per_user=2, in_all=3)
    there = {SessionKey("a", "1"), SessionKey("a", "2")}
    limits.check(SessionKey("a", "1"), there)  # it is there
    limits.check(SessionKey("b", "1"), there)
    with pytest.raises(LimitExceeded, match="for this user: the limit is 2; close one") as caught:
        limits.check(SessionKey("a", "3"), there)
    assert caught.value.retryable
    with pytest.raises(LimitExceeded, match="on this server: the limit is 3; try again"):
        limits.check(SessionKey("b", "2"), there | {SessionKey("b", "1")})
