"""Futures of readers and writers, which may be done already."""

import asyncio

from kernelbridge.runtimes.agent.stream import wake


async def test_a_future_is_set_once_whatever_became_of_it() -> None:
    waiting, done, cancelled = (asyncio.get_running_loop().create_future() for _ in range(3))
    done.set_result(None)
    cancelled.cancel()
    for future in (waiting, done, cancelled, None):
        wake(future)
    assert waiting.done()
    assert cancelled.cancelled()
