from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest

from kernelbridge.aio.turns import TURN, Turns, turns


class Clock:
    """A clock that each slice of work advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def work(clock: Clock, told: list[str], name: str, pieces: int, each: float) -> Generator[None, None, str]:
    for _ in range(pieces):
        clock.now += each
        told.append(name)
        yield
    return name


async def test_the_result_of_work_is_returned_when_it_has_ended() -> None:
    told: list[str] = []
    assert await turns().run(work(Clock(), told, "a", 1000, 0.001)) == "a"
    assert told == ["a"] * 1000


async def test_what_ends_at_once_needs_no_turn() -> None:
    told: list[str] = []
    clock = Clock()
    shared = Turns(asyncio.get_running_loop(), clock)
    assert shared.begin(work(clock, told, "a", 3, 0)) is None
    assert told == ["a"] * 3


async def test_an_iteration_of_the_loop_is_bounded_and_all_works_get_their_turns() -> None:
    clock, told = Clock(), list[str]()
    shared = Turns(asyncio.get_running_loop(), clock)
    ends = [shared.begin(work(clock, told, name, 30, TURN / 4)) for name in "abc"]
    longest, last, order = 0.0, clock.now, ""
    while not all(end is not None and end.done() for end in ends):
        before = len(told)
        await asyncio.sleep(0)
        longest, last = max(longest, clock.now - last), clock.now
        order += "".join(dict.fromkeys(told[before:]))
    assert longest <= TURN * 1.25
    assert len(told) == 90
    assert "abcabc" in order


async def test_an_error_of_one_work_is_raised_where_it_is_awaited_and_costs_the_others_nothing() -> None:
    def fails() -> Generator[None, None, None]:
        yield
        raise ValueError("it failed")

    told: list[str] = []
    good = asyncio.create_task(turns().run(work(Clock(), told, "a", 10, 0)))
    with pytest.raises(ValueError, match="it failed"):
        await turns().run(fails())
    assert await good == "a"


async def test_work_is_closed_when_nobody_waits_for_it_any_more() -> None:
    told: list[str] = []
    clock = Clock()
    shared = Turns(asyncio.get_running_loop(), clock)
    waiting = asyncio.create_task(shared.run(work(clock, told, "a", 1000, TURN)))
    for _ in range(4):
        await asyncio.sleep(0)
    assert 1 < len(told) < 5
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    seen = len(told)
    assert await shared.run(work(clock, told, "b", 3, 0)) == "b"
    assert told[seen:] == ["b"] * 3
