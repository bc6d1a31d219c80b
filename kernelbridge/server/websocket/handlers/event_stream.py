"""The events of a run on their way to its client: merged, numbered, and counted when left out.

    events = EventStream(context, output_event)
    events.write("stdout", "some text")              # the first at once, then what was written within `MERGE` seconds
    events.send(lambda seq, left_out: ClearOutput(…), size)
    left_out = events.close()                        # sends what is held back; the answer follows

Only consecutive text of one stream is merged, so the order is kept. A client that reads too slowly misses events, never
the answer: missed bytes are counted, and the next event that has the field `leftOut` carries their number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from msgspec import UNSET, UnsetType

from kernelbridge.jupyter.bounded import size as bytes_of
from kernelbridge.protocol.cells import (
    ClearOutput,
    DisplayData,
    ExecutionOutput,
    ExecutionStarted,
    InputRequest,
    UpdateDisplayData,
)
from kernelbridge.protocol.terminals import TerminalChunk
from kernelbridge.server.websocket.handlers.request_context import RequestContext

MERGE = 0.005
"""Least seconds between two events of text. Text that is written sooner is held back and merged."""
CHUNK = 1 << 16
"""Characters of one event. Text of this length is not held back."""

RunEvent = (
    ExecutionStarted | ExecutionOutput | DisplayData | UpdateDisplayData | ClearOutput | InputRequest | TerminalChunk
)
LeftOut = int | UnsetType
MakeEvent = Callable[[int, LeftOut], RunEvent]
"""Makes an event from `seq` and `leftOut`."""
MakeText = Callable[[str, str, int, LeftOut], RunEvent]
"""Makes the event for text from stream, text, `seq` and `leftOut`."""


class EventStream:
    """The events of one run. Close it before the answer is sent."""

    def __init__(self, context: RequestContext, text_event: MakeText) -> None:
        self._context = context
        self._text_event = text_event
        self._stream = ""
        self._held: list[str] = []
        self._length = 0
        self._sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unreported = 0
        self._left_out = 0
        self._closed = False

    def write(self, stream: str, text: str) -> None:
        """Add text that the run wrote. It is sent soon, in order with all other events."""
        if not text or self._closed:
            return
        if stream != self._stream:
            self.flush()
            self._stream = stream
        self._held.append(text)
        self._length += len(text)
        if self._length >= CHUNK:
            self.flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._sent + MERGE), self._on_timer)

    def send(self, make: MakeEvent, size: int = 0) -> None:
        """Send an event now, after the text before it. `size` is how many bytes are missed if it is left out."""
        if not self._closed:
            self.flush()
            self._offer(make, size)

    def flush(self) -> None:
        """Send the text that is held back."""
        if not self._held:
            return
        text, stream = "".join(self._held), self._stream
        self._held.clear()
        self._length = 0
        self._sent = asyncio.get_running_loop().time()
        for start in range(0, len(text), CHUNK):
            part = text[start : start + CHUNK]
            self._offer(partial(self._text_event, stream, part), bytes_of(part))

    def close(self) -> int:
        """Send the text that is held back, ignore more, and return the bytes left out of all events. Idempotent."""
        self.flush()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._left_out

    def _on_timer(self) -> None:
        self._timer = None
        self.flush()

    def _offer(self, make: MakeEvent, size: int) -> None:
        event = make(self._context.seq(), self._unreported or UNSET)
        if self._context.event(event):
            if getattr(event, "left_out", UNSET) is not UNSET:  # some events do not have this field
                self._unreported = 0
        else:
            self._unreported += size
            self._left_out += size
