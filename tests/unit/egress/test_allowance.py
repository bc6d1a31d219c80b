"""How fast a session may move bytes, and how many."""

import pytest

from kernelbridge.egress.allowance import PIECES, Allowance


def test_without_limits_nothing_waits() -> None:
    allowance = Allowance(None, None)
    assert allowance.spend(1 << 40, 50.0) == 0
    assert not allowance.used_up


def test_a_second_may_be_used_at_once_and_then_the_rate_holds() -> None:
    allowance = Allowance(100, None)
    assert allowance.spend(100, 50.0) == 0
    assert allowance.spend(50, 50.0) == 0.5
    assert allowance.spend(100, 50.0) == 1.5
    assert allowance.spend(50, 52.0) == 0
    assert allowance.spend(100, 100.0) == 0


def test_small_pieces_cost_what_they_cost_the_server() -> None:
    allowance = Allowance(None, None)
    waits = [allowance.spend(1, 50.0) for _ in range(int(2 * PIECES))]
    assert max(waits[: int(PIECES) - 1]) == 0
    assert waits[-1] == pytest.approx(1.0)


def test_the_total_is_used_up() -> None:
    allowance = Allowance(None, 100)
    allowance.spend(99, 0.0)
    assert not allowance.used_up
    allowance.spend(1, 0.0)
    assert allowance.used_up


def test_what_costs_more_than_a_read_counts_as_many() -> None:
    allowance = Allowance(None, None)
    waits = [allowance.spend(0, 100.0, reads=50) for _ in range(80)]
    assert waits[39] == pytest.approx(0.0)
    assert waits[79] == pytest.approx(1.0)
