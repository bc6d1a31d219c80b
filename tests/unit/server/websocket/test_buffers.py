"""The byte budget: who holds most is ended first, and what is held is known at any time."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from kernelbridge.server.websocket.buffers import Buffers, Holding


@dataclass(eq=False)
class Ended:
    """A connection that releases `lets_go` bytes of what it has sent when it is ended."""

    name: str
    lets_go: int = 1 << 30
    calls: list[str] = field(default_factory=list)
    holding: Holding = field(init=False)
    sent: int = 0

    def opened(self, buffers: Buffers, user: str) -> "Ended":
        self.holding = buffers.open(end=self.end, drop=lambda: self.calls.append("drop"))
        self.holding.user = user
        return self

    def send(self, size: int) -> None:
        self.sent = size
        self.holding.incoming(size)

    def end(self) -> None:
        self.calls.append("end")
        self.send(max(0, self.sent - self.lets_go))


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_nobody_is_ended_within_the_budget() -> None:
    buffers = Buffers(100)
    one = Ended("one").opened(buffers, "a")
    one.send(100)
    await turn()
    assert (one.calls, buffers.held) == ([], 100)


async def test_of_the_user_who_holds_most_the_largest_is_ended() -> None:
    buffers = Buffers(100)
    single = Ended("single").opened(buffers, "b")
    single.send(40)
    many = [Ended(str(n)).opened(buffers, "a") for n in range(3)]
    for number, one in enumerate(many):
        one.send(20 + number)
    await turn()
    assert [one.calls for one in (single, *many)] == [[], [], [], ["end"]]
    assert buffers.held == 40 + 20 + 21


async def test_all_unknown_users_are_one() -> None:
    """Here each of them holds less than a known one does, and all of them much more."""
    buffers, ended = Buffers(100), list[str]()
    known = Ended("known").opened(buffers, "a")
    known.send(8)
    unknown = []
    for number in range(40):
        unknown.append(buffers.open(end=lambda: ended.append("unknown"), drop=lambda: None))
        unknown[number].incoming(3)
    await turn()
    assert (known.calls, set(ended), known.holding.size) == ([], {"unknown"}, 8)


async def test_of_unknown_users_the_largest_is_ended() -> None:
    buffers, ended = Buffers(100), list[str]()
    for name, size in (("newcomer", 1), ("greedy", 60), ("modest", 41)):
        holding = buffers.open(end=lambda name=name: ended.append(name), drop=lambda: None)  # type: ignore[misc]
        holding.incoming(size)
    await turn()
    assert ended == ["greedy"]


async def test_one_that_is_ending_and_still_holds_too_much_is_dropped_before_another_is_ended() -> None:
    buffers = Buffers(100)
    stuck = Ended("stuck", lets_go=0).opened(buffers, "a")
    other = Ended("other").opened(buffers, "b")
    stuck.send(60)
    other.send(50)
    await turn()
    assert (stuck.calls, other.calls, buffers.held) == (["end", "drop"], [], 50)
    stuck.send(1000)  # what is dropped counts no more
    assert buffers.held == 50


async def test_as_many_are_ended_as_it_takes() -> None:
    buffers = Buffers(100)
    all_of_them = [Ended(str(n)).opened(buffers, str(n)) for n in range(10)]
    for one in all_of_them:
        one.send(30)
    await turn()
    assert sum(one.calls == ["end"] for one in all_of_them) == 7
    assert buffers.held == 90


@pytest.mark.parametrize("seed", range(20))
async def test_it_always_knows_what_is_held(seed: int) -> None:
    chance, buffers = random.Random(seed), Buffers(1 << 40)
    holdings: dict[Holding, tuple[int, list[int]]] = {}
    for _ in range(300):
        chosen = chance.choice([*holdings, None])
        step = chance.choice(["incoming", "put", "put", "taken", "close"])
        if chosen is None:
            holdings[buffers.open(end=pytest.fail, drop=pytest.fail)] = (0, [])
        elif step == "incoming":
            holdings[chosen] = (size := chance.randrange(1000), holdings[chosen][1])
            chosen.incoming(size)
        elif step == "put":
            holdings[chosen][1].append(frame := chance.randrange(1000))
            chosen.add(frame)
        elif step == "taken" and holdings[chosen][1]:
            chosen.remove(holdings[chosen][1].pop(0))
        elif step == "close" and chance.random() < 0.1:
            del holdings[chosen]
            chosen.close()
            chosen.close()
        assert buffers.held == sum(size + sum(put) for size, put in holdings.values())
