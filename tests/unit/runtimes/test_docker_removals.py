"""Removals that an engine has not carried out yet."""

import asyncio

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.docker import removals
from kernelbridge.runtimes.docker.removals import Removals
from kernelbridge.runtimes.docker.tasks import Background


class Engine:
    """Refuses to remove some times."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked = 0

    async def remove(self) -> None:
        self.asked += 1
        if self.asked <= self.refusals:
            raise SandboxError("It is busy")


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long is waited, and do not wait."""
    found: list[float] = []

    async def stopped(self: Removals, seconds: float) -> bool:
        found.append(seconds)
        return self._stopping.is_set()

    monkeypatch.setattr(Removals, "_stopped", stopped)
    return found


async def test_what_succeeds_at_once_is_not_retried(delays: list[float]) -> None:
    background, engine = Background(), Engine(0)
    assert await Removals(background).attempt("c", engine.remove)
    await background.settle()
    assert (engine.asked, delays) == (1, [])


async def test_pauses_grow_up_to_a_longest_one(delays: list[float]) -> None:
    background, engine = Background(), Engine(7)
    assert not await Removals(background).attempt("c", engine.remove)
    await background.settle()
    assert engine.asked == 8
    assert delays == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0]


@pytest.mark.usefixtures("delays")
async def test_a_name_is_retried_once_at_a_time_and_again_when_it_failed_later() -> None:
    background, engine, other = Background(), Engine(2), Engine(2)
    retried = Removals(background)
    for _ in range(3):
        retried.insist("c", engine.remove, reason=SandboxError("x"))
    retried.insist("d", other.remove, reason=SandboxError("x"))
    await background.settle()
    assert (engine.asked, other.asked) == (3, 3)
    retried.insist("c", engine.remove, reason=SandboxError("x"))
    await background.settle()
    assert engine.asked == 4


@pytest.mark.usefixtures("delays")
async def test_nothing_is_retried_after_the_stop() -> None:
    background, engine = Background(), Engine(100)
    retried = Removals(background)
    retried.insist("c", engine.remove, reason=SandboxError("x"))
    retried.stop()
    retried.insist("d", engine.remove, reason=SandboxError("x"))
    await background.settle()
    assert engine.asked == 0


async def test_a_stop_ends_a_pause() -> None:
    background, engine = Background(), Engine(100)
    retried = Removals(background)
    assert removals.FIRST_DELAY > 0
    retried.insist("c", engine.remove, reason=SandboxError("x"))
    waiting = asyncio.create_task(background.settle())
    await asyncio.sleep(0)
    retried.stop()
    await asyncio.wait_for(waiting, 60)
    assert engine.asked == 0
