import asyncio

import pytest

from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.workspace.lifecycle.start_queue import StartQueue


async def waiting(starts: StartQueue, count: int) -> None:
    while starts.waiting != count:
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0)


async def test_no_more_than_so_many_start_at_once_and_users_take_turns() -> None:
    starts, running, most, order = StartQueue(2), 0, 0, []

    async def start(user: str) -> None:
        nonlocal running, most
        async with starts.turn(user):
            running += 1
            most = max(most, running)
            order.append(user)
            for _ in range(3):
                await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0)
            running -= 1

    async with asyncio.TaskGroup() as group:
        for user in ("a", "a", "a", "a", "a", "b"):
            group.create_task(start(user))
    assert most == 2
    assert order.index("b") == 3


async def test_a_user_with_many_starts_delays_others_by_one_only() -> None:
    starts, order = StartQueue(1), list[str]()

    async def start(user: str | None, name: str) -> None:
        async with starts.turn(user):
            order.append(name)

    async with asyncio.TaskGroup() as group, starts.turn("greedy"):
        for number, (user, name) in enumerate(
            [("greedy", "g1"), ("greedy", "g2"), ("greedy", "g3"), ("late", "l1"), (None, "n1")], 1
        ):
            group.create_task(start(user, name))
            await waiting(starts, number)
    assert order == ["g1", "l1", "n1", "g2", "g3"]


async def test_all_waiting_starts_fail_when_the_engine_does_not_answer() -> None:
    starts = StartQueue(1)
    release = asyncio.Event()

    async def start() -> None:
        async with starts.turn("a"):
            await release.wait()
            raise RuntimeUnavailable("The Docker engine does not answer", "restart it")

    tasks = [asyncio.create_task(start()) for _ in range(5)]
    await waiting(starts, 4)
    release.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {str(result) for result in results} == {"The Docker engine does not answer: restart it"}
    async with starts.turn("b"):
        pass


@pytest.mark.parametrize("granted", [False, True])
async def test_a_cancelled_start_leaves_its_turn_to_others(*, granted: bool) -> None:
    starts = StartQueue(1)

    async def hold() -> None:
        async with starts.turn("a"):
            pass

    async with asyncio.timeout(60):
        async with starts.turn("a"):
            first = asyncio.create_task(hold())
            await waiting(starts, 1)
            second = asyncio.create_task(hold())
            await waiting(starts, 2)
            if not granted:
                first.cancel()
                await asyncio.wait({first})
        if granted:
            first.cancel()  # it has its turn, and does not know it yet
        await asyncio.wait({first, second})
    assert (first.cancelled(), second.exception()) == (True, None)
    async with asyncio.timeout(60), starts.turn("b"):
        pass
