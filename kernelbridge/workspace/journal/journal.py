"""What a session has told lately, numbered, so that a client that comes back misses nothing; pure.

    add ──▶ the latest entries, bounded in bytes ── oldest first, too many ──▶ gone, and said so
                    │                                                    └──▶ kept, if nobody got it yet
                    └── after(n) gives both, in order

Numbers grow from entry to entry, but not by one: some frames are numbered and not kept here.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass

ENTRY_COST = 300
"""Bytes that an entry takes besides its frame."""


@dataclass(slots=True, eq=False)
class Entry:
    """One frame that was told."""

    seq: int
    frame: bytes
    """A JSON object."""
    numbered: bool
    """Whether `seq` is in the frame: documented answers carry none."""
    kept: bool = False
    """Nobody has got it yet: it outlives its turn."""
    aside: bool = False
    """Its turn is over, and it is still there."""
    gone: bool = False

    def with_seq(self) -> bytes:
        """Give the frame with its number, for those who follow the session."""
        return self.frame if self.numbered else b'%b,"seq":%d}' % (self.frame[:-1], self.seq)


class Journal:
    """The bounded memory of a session's frames. Numbers grow from entry to entry."""

    def __init__(self, *, size: int, kept_size: int, lost: int = 0) -> None:
        """`size` bounds the latest entries, `kept_size` those that nobody got, but for the newest of them.

        Numbers up to `lost` are another journal's, which is gone.
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
        """The largest number that is gone."""

    def __repr__(self) -> str:
        return f"<Journal to {self.last}, {len(self._latest)} entries, {len(self._kept)} kept, lost to {self.lost}>"

    def __len__(self) -> int:
        return len(self._latest) + len(self._kept)

    @property
    def unread(self) -> int:
        """How many answers nobody has got."""
        return sum(entry.kept for entry in self._latest) + len(self._kept)

    def add(self, seq: int, frame: bytes, *, numbered: bool, kept: bool = False) -> Entry:
        """Take a frame. One that is larger than the journal pushes nothing else out, and stays only if `kept`."""
        entry = Entry(seq, frame, numbered, kept)
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
        """Hold an entry beyond its turn, because nobody has got it after all."""
        entry.kept = True
        if entry.gone:
            entry.gone = False
            self._retire(entry)

    def delivered(self, entry: Entry) -> None:
        """Take note that whoever should have a kept entry has got it."""
        entry.kept = False
        if entry.aside:
            self._kept.remove(entry)
            self._put_away(entry)

    def after(self, seq: int, most: int) -> list[Entry]:
        """Give the first entries with a larger number, in order; at most about `most` of them."""
        found = [entry for entry in self._kept if entry.seq > seq]
        newer: list[Entry] = []
        for entry in reversed(self._latest):
            if entry.seq <= seq:
                break
            newer.append(entry)
        # A kept entry that was too large for the journal has younger neighbours among the latest.
        return sorted((*found, *reversed(newer)), key=_number)[:most]

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
