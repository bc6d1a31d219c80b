"""Long work on the event loop in slices, so that no session delays the others, whatever it prints or sends.

Such work is a generator that yields every few milliseconds, wherever it can be paused:

    later = turns().begin(work)      # runs a first slice at once; None if the work has ended with it
    result = await turns().run(work)

Each iteration of the loop runs one slice, however many works wait. They have their turns in a circle. A reader that
started work for a session reads nothing more until the work has ended, so nothing is dropped or reordered.
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
"""A generator that yields where it can be paused, and returns its result. What it yields is ignored."""

TURN = 0.005
"""Seconds of one slice."""
AT_ONCE = 0.002
"""Seconds that `begin` works at once, while no other work waits."""


class Turns:
    """The long work of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.perf_counter) -> None:
        self._loop = loop
        self._clock = clock
        self._waiting: deque[tuple[LoopWork[Any], asyncio.Future[Any]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, work: LoopWork[T]) -> asyncio.Future[T] | None:
        """Run a first slice. Return None if the work has ended, else a future that is done when it ends.

        Raises what the work raises in the first slice. What it raises later is the exception of the future.
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
        """Run the whole work in slices. Return its result, or raise what it raises. If cancelled, close it."""
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
            ended = done.done() or _run_slice(work, done, lambda: self._clock() < end)
            self._waiting.popleft()
            if not ended:
                self._waiting.append((work, done))
        if self._waiting:
            self._loop.call_soon(self._turn)


def _run_slice(work: LoopWork[T], done: asyncio.Future[T], has_time: Callable[[], bool]) -> bool:
    """Run some work while `has_time` says so. Return whether it has ended; then `done` has its result or exception."""
    try:
        next(work)
        while has_time():
            next(work)
    except StopIteration as exc:
        done.set_result(exc.value)
    except Exception as exc:  # noqa: BLE001 - raised where `done` is awaited
        done.set_exception(exc)
    else:
        return False
    return True


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def turns() -> Turns:
    """Return the `Turns` of the running loop, which all sessions share."""
    loop = asyncio.get_running_loop()
    found = _turns.get(loop)
    if found is None:
        found = _turns[loop] = Turns(loop)
    return found
