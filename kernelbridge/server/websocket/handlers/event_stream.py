"""A run's events on their way to the client that asked for them: merged, numbered, and counted when left out.

    events = EventStream(context, output_event)
    events.write("stdout", "some text")              # the first at once, then what `MERGE` seconds brought
    events.tell(lambda seq, left_out: ClearOutput(…), size)
    left_out = events.close()                        # sends what is held back; then the answer

Only neighbouring text of one stream is merged, so nothing changes places. A client that reads too slowly misses
events, never the answer: what it missed is counted in bytes and told by the next event that can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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
"""Least seconds between two events of text: what is written sooner after one is held back, and goes together."""
CHUNK = 1 << 16
"""Characters of one event; text that long is not held back."""

RunEvent = (
    ExecutionStarted | ExecutionOutput | DisplayData | UpdateDisplayData | ClearOutput | InputRequest | TerminalChunk
)
LeftOut = int | UnsetType
MakeEvent = Callable[[int, LeftOut], RunEvent]
"""Make an event of its `seq` and `leftOut`."""
MakeText = Callable[[str, str, int, LeftOut], RunEvent]
"""Make the event for text on a stream: of stream, text, `seq` and `leftOut`."""


class EventStream:
    """The events of one run. Used on the event loop only; close it before the answer is sent."""

    def __init__(self, context: RequestContext, text_event: MakeText) -> None:
        self._context = context
        self._text_event = text_event
        self._stream = ""
        self._held: list[str] = []
        self._length = 0
        self._sent = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._untold = 0
        self._left_out = 0
        self._closed = False

    def write(self, stream: str, text: str) -> None:
        """Take what the run wrote; it is sent soon, in order with everything else."""
        if not text or self._closed:
            return
        if stream != self._stream:
            self._send_held()
            self._stream = stream
        self._held.append(text)
        self._length += len(text)
        if self._length >= CHUNK:
            self._send_held()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._sent + MERGE), self._on_timer)

    def tell(self, make: MakeEvent, size: int = 0) -> None:
        """Send an event at once, behind the text before it; `size` is what counts as left out if it is not sent."""
        if not self._closed:
            self._send_held()
            self._offer(make, size)

    def flush(self) -> None:
        """Send what is held back, because something else comes behind it."""
        self._send_held()

    def close(self) -> int:
        """Send what is held back and take no more; give the bytes that were left out of all events. Idempotent."""
        self._send_held()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return self._left_out

    def _on_timer(self) -> None:
        self._timer = None
        self._send_held()

    def _send_held(self) -> None:
        if not self._held:
            return
        text, stream = "".join(self._held), self._stream
        self._held.clear()
        self._length = 0
        self._sent = asyncio.get_running_loop().time()
        for start in range(0, len(text), CHUNK):
            self._offer_text(stream, text[start : start + CHUNK])

    def _offer_text(self, stream: str, text: str) -> None:
        self._offer(lambda seq, left_out: self._text_event(stream, text, seq, left_out), bytes_of(text))

    def _offer(self, make: MakeEvent, size: int) -> None:
        event = make(self._context.seq(), self._untold or UNSET)
        if self._context.event(event):
            if getattr(event, "left_out", UNSET) is not UNSET:  # some kinds of event have no such field
                self._untold = 0
        else:
            self._untold += size
            self._left_out += size
