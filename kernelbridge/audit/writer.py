"""A thread that writes the audit log, so that no disk delays the event loop.

The queue before it is bounded. What does not fit, and what a full disk does not take, is counted, and the next line
that can be written says how many entries are missing there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Protocol

import structlog

from kernelbridge.audit.entries import Entry, line

log = structlog.get_logger(__name__)

MOST_ENTRIES = 10_000
MOST_BYTES = 64 << 20
"""Entries and bytes that may wait for the disk."""
COLLECT = 0.05
"""Seconds in which entries are collected before they are written: a thread that runs for each one would take the
interpreter from the event loop each time."""
BATCH = 500
"""Entries that are written at a time."""
LAST = 3.0
"""Seconds that the last entries may take when the server stops."""

QUEUE_FULL = "the disk was too slow"


class Lines(Protocol):
    """Where lines are written (`log_file.LogFile`)."""

    def write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Append lines; return how many were written whole, and why the others were not."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class Writer:
    """Writes entries in their order. `put` and `close` belong to one thread, the event loop's."""

    def __init__(self, lines: Lines, *, with_code: bool, on_lost: Callable[[int], None]) -> None:
        """Start the thread. `on_lost` is called, from any thread, with the number of entries that were lost."""
        self._lines = lines
        self._with_code = with_code
        self._on_lost = on_lost
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()
        # Each counter is changed by one thread only; their differences are what waits.
        self._put, self._put_bytes = 0, 0
        self._taken, self._taken_bytes = 0, 0
        self._dropped = 0
        """Entries that did not fit since the last one that did."""
        self._unwritten = 0
        """Entries that could not be written since the last one that could."""
        self._problem = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Queue an entry, or count it as lost. Never waits."""
        waiting = self._put - self._taken
        if waiting and (waiting >= MOST_ENTRIES or self._put_bytes - self._taken_bytes + entry.cost > MOST_BYTES):
            self._dropped += 1
            self._on_lost(1)
            return
        self._say_dropped()
        self._queue_up(entry)

    def close(self) -> None:
        """Write what waits, for up to `LAST` seconds, and end the thread; blocking."""
        self._say_dropped()
        self._queue.put(None)
        self._closing.set()
        self._thread.join(LAST)
        if self._thread.is_alive():
            log.error("audit_log_not_written", error="the disk does not answer", lost=self._put - self._taken)

    def _say_dropped(self) -> None:
        if self._dropped:
            self._queue_up(_gap(self._dropped, QUEUE_FULL))
            self._dropped = 0

    def _queue_up(self, entry: Entry) -> None:
        self._put += 1
        self._put_bytes += entry.cost
        self._queue.put(entry)

    # -- in the thread --------------------------------------------------------------

    def _run(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._next()
            try:
                self._write(batch)
            except Exception:  # a bug: the next entries can be written all the same
                log.exception("audit_log_not_written")
                self._lost(len(batch), "a bug of the server")
            self._taken += len(batch)
            self._taken_bytes += sum(entry.cost for entry in batch)
        self._lines.close()

    def _next(self) -> tuple[list[Entry], bool]:
        """Wait for entries; return some, and whether they are the last."""
        batch: list[Entry] = []
        entry = self._queue.get()
        self._closing.wait(COLLECT)
        while entry is not None:
            batch.append(entry)
            if len(batch) == BATCH:
                return batch, False
            try:
                entry = self._queue.get_nowait()
            except Empty:
                return batch, False
        return batch, True

    def _write(self, batch: Sequence[Entry]) -> None:
        if not batch:
            return
        lines = [line(entry, with_code=self._with_code) for entry in batch]
        gap = [] if not self._unwritten else [line(_gap(self._unwritten, self._problem), with_code=False)]
        written, problem = self._lines.write([*gap, *lines])
        if gap and written:
            self._unwritten = 0
        missing = len(lines) - max(0, written - len(gap))
        if problem is not None:
            if not self._unwritten:
                log.error("audit_log_not_written", error=problem.strerror or str(problem))
            self._lost(missing, problem.strerror or str(problem))
        elif gap:
            log.info("audit_log_written_again")

    def _lost(self, count: int, problem: str) -> None:
        self._unwritten += count
        self._problem = problem
        self._on_lost(count)


def _gap(count: int, why: str) -> Entry:
    return Entry(time.time(), "gap", {"lost": count, "reason": why})
