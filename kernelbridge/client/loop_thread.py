"""The event loop of all synchronous clients of a process: in one daemon thread, started by the first call.

A forked child has no threads of its parent. It gets a loop of its own with its first call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SLICE = 0.1
"""Seconds between two looks for signals where a wait cannot be interrupted by them (Windows)."""
CANCELLING = 5.0
"""Seconds that a call may take to end after Ctrl-C."""

Relay = Callable[[Callable[..., Any]], Callable[..., Awaitable[Any]]]
"""Turns a function of the caller into one for the event loop, which calls it in the caller's thread."""


class _Caller(Generic[T]):
    """The thread that waits for a coroutine, and runs its callbacks meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inbox: queue.SimpleQueue[asyncio.Task[T] | Callable[[], None]] = queue.SimpleQueue()
        self._task: asyncio.Task[T] | None = None

    def start(self, coroutine: Coroutine[Any, Any, T]) -> None:
        """Begin, in the event loop."""
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._inbox.put)

    def cancel(self) -> None:
        """Cancel what was begun, in the event loop."""
        if self._task is not None:
            self._task.cancel()

    def relay(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return a function for the event loop that calls `function` in the caller's thread."""

        async def in_the_callers_thread(*args: Any) -> Any:
            value: concurrent.futures.Future[Any] = concurrent.futures.Future()

            def work() -> None:
                if not value.set_running_or_notify_cancel():
                    return  # nobody waits for it any more
                try:
                    value.set_result(function(*args))
                except Exception as exc:  # noqa: BLE001 - the coroutine raises it
                    value.set_exception(exc)

            self._inbox.put(work)
            return await asyncio.wrap_future(value)

        return in_the_callers_thread

    def wait(self) -> asyncio.Task[T]:
        """Run callbacks until the coroutine has ended."""
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._inbox.get(timeout=SLICE)
                if isinstance(item, asyncio.Task):
                    return item
                item()

    def wait_for_the_end(self) -> None:
        """Wait until the coroutine has ended, for some seconds at most."""
        with contextlib.suppress(queue.Empty):
            while not isinstance(self._inbox.get(timeout=CANCELLING), asyncio.Task):
                pass


class LoopThread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kernelbridge client", daemon=True)
        self._thread.start()

    def call(self, make: Callable[[Relay], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine to its end, and return its result. Call it from any thread but the loop's.

        `make` gets a function that lets callbacks run in this thread. An exception here, such as KeyboardInterrupt,
        cancels the coroutine, and is raised when that has ended.
        """
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError(
                "a synchronous client was called in its own event loop, where it would wait for itself: use AsyncClient"
            )
        caller = _Caller[T](self._loop)

        async def made() -> T:
            return await make(caller.relay)  # in the loop, where an error of `make` ends the call, too

        try:
            self._loop.call_soon_threadsafe(lambda: caller.start(made()))
            task = caller.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(caller.cancel)
            caller.wait_for_the_end()
            raise
        return task.result()

    def later(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run a coroutine some time; nobody waits for it."""

        async def run() -> None:
            with contextlib.suppress(Exception):
                await make()

        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(run()))


_lock = threading.RLock()
"""Reentrant: `__del__` of a client may need the loop while it is being made."""
_current: LoopThread | None = None
_inherited: list[Any] = []
"""What a forked child has of its parent, and must never touch or clean up: it shares sockets with it."""


def loop_thread() -> LoopThread:
    """Return the loop of this process."""
    global _current, _lock  # noqa: PLW0603 - one for each process
    if _current is not None and _current.pid != os.getpid():
        keep(_current)
        _current, _lock = None, threading.RLock()  # another thread of the parent may have held it
    with _lock:
        if _current is None:
            _current = LoopThread()
        return _current


def keep(inherited: Any) -> None:
    """Keep something of a parent process for ever."""
    _inherited.append(inherited)
