"""The latest frames of a session, numbered, so that a client that returns misses nothing; pure.

    add ──▶ the latest entries, bounded in bytes ── the oldest, if too many ──▶ dropped, and reported as lost
                    │                                                     └──▶ kept, if no connection received it
                    └── after(n) returns both, in order

Numbers grow from entry to entry, but not by one: some numbered frames are not stored here.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass

ENTRY_COST = 300
"""Bytes that an entry takes besides its frame."""


@dataclass(slots=True, eq=False)
class Entry:
    """One frame that was sent."""

    seq: int
    frame: bytes
    """A JSON object."""
    numbered: bool
    """Whether `seq` is in the frame: documented answers have none."""
    kept: bool = False
    """Whether no connection has received it: it stays longer than the latest entries."""
    request_id: str | None = None
    """Of an answer: the `requestId` that is in it."""
    aside: bool = False
    """Whether it is no longer among the latest entries, and kept."""
    gone: bool = False

    def with_seq(self) -> bytes:
        """Return the frame with its number, for followers of the session."""
        return self.frame if self.numbered else b'%b,"seq":%d}' % (self.frame[:-1], self.seq)


class Journal:
    """The bounded memory of a session's frames. Numbers grow from entry to entry."""

    def __init__(self, *, size: int, kept_size: int, lost: int = 0) -> None:
        """Limit the latest entries to `size` bytes, and kept older ones to `kept_size` bytes or a single entry.

        Numbers up to `lost` belong to another journal, which is lost.
        """
        self._size = size
        self._kept_size = kept_size
        self._latest: deque[Entry] = deque()
        self._bytes = 0
        self._kept: list[Entry] = []
        self._kept_bytes = 0
        self.last = lost
        """The number of the latest entry."""
        self.lost = lost
        """The largest number that is lost."""

    def __repr__(self) -> str:
        return f"<Journal to {self.last}, {len(self._latest)} entries, {len(self._kept)} kept, lost to {self.lost}>"

    def __len__(self) -> int:
        return len(self._latest) + len(self._kept)

    @property
    def unread(self) -> int:
        """How many answers no connection has received."""
        return sum(entry.kept for entry in self._latest) + len(self._kept)

    def add(
        self, seq: int, frame: bytes, *, numbered: bool, kept: bool = False, request_id: str | None = None
    ) -> Entry:
        """Add a frame. One that is larger than the journal displaces no other, and stays only if `kept`."""
        entry = Entry(seq, frame, numbered, kept, request_id)
        self.last = seq
        cost = len(frame) + ENTRY_COST
        if cost > self._size:
            self._retire(entry)
            return entry
        self._latest.append(entry)
        self._bytes += cost
        while self._bytes > self._size:
            oldest = self._latest.popleft()
            self._bytes -= len(oldest.frame) + ENTRY_COST
            self._retire(oldest)
        return entry

    def keep(self, entry: Entry) -> None:
        """Keep an entry: it was queued for a connection, which ended before it was sent."""
        entry.kept = True
        if entry.gone:
            entry.gone = False
            self._retire(entry)

    def delivered(self, entry: Entry) -> None:
        """Keep an entry no longer: it was queued for all connections that should get it."""
        entry.kept = False
        if entry.aside:
            self._kept.remove(entry)
            self._put_away(entry)

    def after(self, seq: int, most: int) -> list[Entry]:
        """Return the first `most` entries with a larger number, in order."""
        found = [entry for entry in self._kept if entry.seq > seq]
        newer: list[Entry] = []
        for entry in reversed(self._latest):
            if entry.seq <= seq:
                break
            newer.append(entry)
        # A kept entry that is larger than the journal can be newer than some of the latest.
        return sorted((*found, *reversed(newer)), key=_number)[:most]

    def answered(self, seq: int) -> set[str]:
        """Return the ids of the requests whose answers are kept and have a larger number."""
        return {entry.request_id for entry in (*self._kept, *self._latest) if entry.seq > seq and entry.request_id}

    def latest(self, most: int) -> list[Entry]:
        """Return the `most` entries with the largest numbers, in order."""
        return self.after(0, len(self))[-most:]

    def _retire(self, entry: Entry) -> None:
        if not entry.kept:
            self._forget(entry)
            return
        entry.aside = True
        insort(self._kept, entry, key=_number)
        self._kept_bytes += len(entry.frame) + ENTRY_COST
        while self._kept_bytes > self._kept_size and len(self._kept) > 1:
            self._put_away(self._kept.pop(0))

    def _put_away(self, entry: Entry) -> None:
        entry.aside = entry.kept = False
        self._kept_bytes -= len(entry.frame) + ENTRY_COST
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        entry.gone = True
        self.lost = max(self.lost, entry.seq)


def _number(entry: Entry) -> int:
    return entry.seq
