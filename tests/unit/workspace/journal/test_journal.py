"""The journal keeps the latest frames, and those that nobody got; what is gone is known."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.workspace.journal.journal import ENTRY_COST, Entry, Journal

FRAME = b'{"type":"x"}'
COST = len(FRAME) + ENTRY_COST


def journal(entries: int = 3, kept: int = 2) -> Journal:
    """One with room for so many small frames."""
    return Journal(size=entries * COST, kept_size=kept * COST)


def fill(made: Journal, *numbers: int, kept: bool = False) -> list[Entry]:
    return [made.add(number, FRAME, numbered=False, kept=kept) for number in numbers]


def numbers(made: Journal, after: int = 0) -> list[int]:
    return [entry.seq for entry in made.after(after, 100)]


def test_the_oldest_frames_go_first_and_that_is_known() -> None:
    made = journal()
    fill(made, 1, 2, 3, 5, 8)
    assert numbers(made) == [3, 5, 8]
    assert numbers(made, after=3) == [5, 8]
    assert (made.lost, made.last) == (2, 8)


def test_an_undelivered_entry_stays_until_it_is_delivered() -> None:
    made = journal()
    (kept,) = fill(made, 1, kept=True)
    fill(made, 2, 3, 4, 5)
    assert numbers(made) == [1, 3, 4, 5]
    assert made.lost == 2
    made.delivered(kept)
    assert numbers(made) == [3, 4, 5]


def test_an_entry_that_is_delivered_in_time_is_dropped_like_the_others() -> None:
    made = journal()
    (kept,) = fill(made, 1, kept=True)
    made.delivered(kept)
    assert numbers(made) == [1]
    fill(made, 2, 3, 4)
    assert numbers(made) == [2, 3, 4]


def test_an_entry_that_did_not_arrive_is_kept_again() -> None:
    made = journal()
    first, second = fill(made, 1, 2)
    fill(made, 3, 4, 5)
    made.keep(second)
    made.keep(first)
    made.keep(first)
    assert numbers(made) == [1, 2, 3, 4, 5]


def test_undelivered_entries_are_bounded_but_for_the_newest() -> None:
    made = journal(kept=2)
    fill(made, 1, 2, 3, 4, 5, 6, 7, 8, kept=True)
    assert numbers(made) == [4, 5, 6, 7, 8]
    assert made.lost == 3
    huge = b'{"a":"' + b"x" * 10_000 + b'"}'
    made.add(9, huge, numbered=False, kept=True)
    assert numbers(made)[-4:] == [6, 7, 8, 9]
    assert len(made) == 4


def test_a_frame_larger_than_the_journal_pushes_nothing_out() -> None:
    made = journal()
    fill(made, 1, 2)
    made.add(3, b"x" * 10_000, numbered=False)
    assert numbers(made) == [1, 2]
    assert made.lost == 3


def test_a_frame_is_numbered_for_followers() -> None:
    plain, with_number = Entry(7, FRAME, numbered=False), Entry(8, b'{"seq":8}', numbered=True)
    assert json.loads(plain.with_seq()) == {"type": "x", "seq": 7}
    assert with_number.with_seq() == b'{"seq":8}'


@pytest.mark.parametrize("most", [1, 2, 50])
def test_it_is_read_in_parts(most: int) -> None:
    made = journal(entries=5)
    fill(made, 1, kept=True)
    fill(made, *range(2, 10))
    read: list[int] = []
    while batch := made.after(read[-1] if read else 0, most):
        assert len(batch) <= most
        read += [entry.seq for entry in batch]
    assert read == [1, 5, 6, 7, 8, 9]


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "kept", "deliver", "keep"]), st.integers(0, 2000), st.integers(0, 30)),
        max_size=60,
    )
)
def test_it_is_always_bounded_in_order_and_right_about_lost_numbers(steps: list[tuple[str, int, int]]) -> None:
    made = Journal(size=4000, kept_size=3000)
    all_of_them: list[Entry] = []
    for what, size, which in steps:
        if what in {"add", "kept"}:
            number = made.last + 1 + which % 3
            all_of_them.append(made.add(number, b"x" * size, numbered=True, kept=what == "kept"))
        elif all_of_them:
            entry = all_of_them[which % len(all_of_them)]
            (made.delivered if what == "deliver" else made.keep)(entry)
        there = made.after(0, 1000)
        seen = [entry.seq for entry in there]
        assert seen == sorted(set(seen))
        missing = [entry for entry in all_of_them if entry not in there]
        assert all(entry.seq <= made.lost and entry.gone and not entry.kept for entry in missing)
        costs = [len(entry.frame) + ENTRY_COST for entry in there]
        assert sum(costs) <= 4000 + max(3000, max(costs, default=0))
