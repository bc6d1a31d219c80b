"""One request while its caller waits: its events, in order, and its answer; and callbacks of either kind."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import deque
from typing import Any

from kernelbridge.client.core import Frame, Request
from kernelbridge.client.errors import ClientError

EVENTS = 64 << 20
"""Characters of output and displays that may wait for a caller that does not take events as fast as they come."""

_WITHOUT_TEXT = frozenset({"display_data", "update_display_data", "clear_output"})
_RECORD = 512
"""Characters that such an event counts besides its content, so that empty ones are bounded, too."""


class Call:
    """Filled as frames arrive; read by one task."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._events: deque[Frame] = deque()
        self._size = 0
        self._left_out = 0
        self._answer: Frame | ClientError | None = None
        self._failure: BaseException | None = None
        self._news = asyncio.Event()

    def put(self, frame: Frame) -> None:
        """Take an event. Output beyond what may wait is left out, and counted in the next event.

        The reader of the connection cannot wait instead: other calls of the same caller need their answers. What a
        terminal replays is never left out, because it is bounded, and counts from the terminal's beginning.
        """
        size = _size(frame)
        if frame["type"] == "terminal_opened":
            self._left_out = 0  # the replay that follows has it, or counts it
        counted = size and not frame.get("replay")
        if counted and self._size + size > EVENTS:
            self._left_out += frame.get("leftOut", 0) + sum(len(part.encode()) for part in _parts(frame))
            return
        # Displays do not say what is missing: the next text does.
        if self._left_out and counted and frame["type"] not in _WITHOUT_TEXT:
            frame["leftOut"] = frame.get("leftOut", 0) + self._left_out
            self._left_out = 0
        self._size += size
        self._events.append(frame)
        self._news.set()

    def settle(self, answer: Frame | ClientError) -> None:
        """Take the answer, or the error that stands for it."""
        self._answer = answer
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """Let `next` raise an error of the caller, before all events. The call is not settled by it."""
        self._failure = error
        self._news.set()

    @property
    def settled(self) -> bool:
        """Whether there is an answer."""
        return self._answer is not None

    async def next(self) -> Frame | None:
        """Return the next event, or None when the answer has come. Raises the error that stands for the answer.

        Cancelling is safe: no event is lost.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            if self._events:
                frame = self._events.popleft()
                self._size -= _size(frame)
                return frame
            if isinstance(self._answer, ClientError):
                raise self._answer
            if self._answer is not None:
                return None
            self._news.clear()
            await self._news.wait()

    async def answer(self) -> Frame:
        """Return the answer; events before it are dropped. Raises the error that stands for it."""
        while await self.next() is not None:
            pass
        assert isinstance(self._answer, dict)  # noqa: S101 - `next` raises an error
        return self._answer


def _parts(frame: Frame) -> list[str]:
    """Return the texts in an event of a run or of a terminal."""
    data = frame.get("data", frame.get("text"))
    if isinstance(data, dict):
        return [part if isinstance(part, str) else json.dumps(part) for part in data.values()]
    return [data] if isinstance(data, str) else []


def _size(frame: Frame) -> int:
    """Return what an event counts; 0 for one that must not be left out."""
    return sum(map(len, _parts(frame))) + (_RECORD if frame["type"] in _WITHOUT_TEXT else 0)


async def awaited(value: Any) -> Any:
    """Return what a callback returned, which may be a coroutine function."""
    return await value if inspect.isawaitable(value) else value
