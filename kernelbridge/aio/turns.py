"""Long work on the event loop in turns, so that no session holds up the others, whatever it prints or sends.

Such work is a generator that yields every few milliseconds at the most, wherever it may be laid down for a moment:

    later = turns().begin(work)      # a first piece at once; None if that was all of it
    result = await turns().run(work)

One thing has its turn in one iteration of the loop, however many wait, and the others go before it comes again.
What is to be done behind the work waits for it, so that nothing is dropped and nothing changes places: whoever reads
for a session does not read on meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

LoopWork = Generator[object, None, T]
"""What it yields means nothing; what it returns is its result."""

TURN = 0.005
"""Seconds after which others have their turn."""
AT_ONCE = 0.002
"""Seconds of work that is begun, while nothing else waits, before the rest of it takes turns."""


class Turns:
    """The work of one event loop that takes turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.perf_counter) -> None:
        self._loop = loop
        self._clock = clock
        self._waiting: deque[tuple[LoopWork[Any], asyncio.Future[Any]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, work: LoopWork[T]) -> asyncio.Future[T] | None:
        """Do the first piece of it, or a little more; gives None if it has ended, or what is done when it ends.

        Raises what the work raises in this first piece; what it raises later is the future's.
        """
        end = self._clock() + AT_ONCE
        try:
            next(work)
            while not self._waiting and self._clock() < end:
                next(work)
        except StopIteration:
            return None
        return self._wait(work)

    async def run(self, work: LoopWork[T]) -> T:
        """Do all of it; gives its result, or raises what it raises. Work that is cancelled ends where it is."""
        done = self._wait(work)
        try:
            return await done
        finally:
            if done.cancelled():
                work.close()

    def _wait(self, work: LoopWork[T]) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append((work, done))
        if len(self._waiting) == 1:
            self._loop.call_soon(self._turn)
        return done

    def _turn(self) -> None:
        end = self._clock() + TURN
        while self._waiting and self._clock() < end:
            work, done = self._waiting[0]
            ended = done.done() or _go_on(work, done, lambda: self._clock() < end)
            self._waiting.popleft()
            if not ended:
                self._waiting.append((work, done))
        if self._waiting:
            self._loop.call_soon(self._turn)


def _go_on(work: LoopWork[T], done: asyncio.Future[T], may: Callable[[], bool]) -> bool:
    """Go on with some work while it may; says whether it has ended."""
    try:
        next(work)
        while may():
            next(work)
    except StopIteration as exc:
        done.set_result(exc.value)
    except Exception as exc:  # noqa: BLE001 - whoever waits for it hears of that
        done.set_exception(exc)
    else:
        return False
    return True


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def turns() -> Turns:
    """Give those of the running loop: all sessions share them."""
    loop = asyncio.get_running_loop()
    found = _turns.get(loop)
    if found is None:
        found = _turns[loop] = Turns(loop)
    return found
