"""What a session tells, and who hears it: whoever asked, those who follow it, and its journal.

    answer, event ──▶ Journal ──▶ whoever asked, while it is connected
                         │   └──▶ those who follow the session (`resume`): everything, in order, without a gap
                         └──────▶ nobody there: answers are kept until somebody follows
    status        ──▶ those who follow it, and its audience: who opened it or streams

Who follows gets frames from the journal as fast as it reads; nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

from msgspec import UNSET, UnsetType

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.protocol import dump
from kernelbridge.protocol.base import Cause
from kernelbridge.protocol.sessions import Resumed, SeqRange, SessionStatus, Status
from kernelbridge.workspace.closed_note import ClosedNote
from kernelbridge.workspace.journal.journal import Entry, Journal

RESERVE = 1 << 20
"""Numbers that are set aside at a time, for another server goes on behind them."""
BATCH = 200
"""Entries that are replayed before others get their turn."""


class Listener(Protocol):
    """One connection, as a feed sees it."""

    id: str
    streams: bool

    @property
    def open(self) -> bool:
        """False once it is gone: nothing reaches it any more."""
        ...

    def put_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> None:
        """Queue a frame that must arrive; `unsent` is called if the connection ends before it is sent."""
        ...

    def offer_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> bool:
        """Queue a frame unless too much waits already; say whether it was."""
        ...

    async def room(self) -> None:
        """Wait until a frame that is offered would be queued, or the connection is gone."""
        ...


@dataclass(slots=True, eq=False)
class _Follower:
    listener: Listener
    cursor: int
    """The number of the last frame that it was given."""
    told_lost: int
    """The largest number that it was told is gone."""
    behind: bool = True
    """It did not take a frame: it gets the rest from the journal as it reads."""


class Feed:
    """Everything that one session tells."""

    def __init__(
        self, session_id: str, *, created: str, journal_size: int, kept_size: int, tasks: TaskSet, told: int = 0
    ) -> None:
        """`told`: an earlier server may have told events with numbers up to this one; they are lost."""
        self.session_id = session_id
        self.created = created
        self.on_reserved: Callable[[], object] = _nothing
        """Called when what `reserve` gave is about to be reached."""
        self._journal = Journal(size=journal_size, kept_size=kept_size, lost=told)
        self._tasks = tasks
        self._numbers = count(told + 1)
        self._taken = told
        self._reserved = sys.maxsize
        self._followers: dict[str, _Follower] = {}
        self._audience: dict[str, Listener] = {}
        self._notice: bytes | None = None
        self._noticed: set[str] = set()

    def __repr__(self) -> str:
        return f"<Feed {self._journal}, {len(self._followers)} followers>"

    @property
    def last(self) -> int:
        """The number of the latest frame that was told."""
        return self._journal.last

    def told(self, listener: Listener) -> int:
        """Give the number up to which a connection has been given, or knows to be lost, what it should have."""
        follower = self._followers.get(listener.id)
        return follower.cursor if follower is not None and follower.behind else self._taken

    def next_seq(self) -> int:
        """Take the number of the next event."""
        self._taken = next(self._numbers)
        if self._taken >= self._reserved - RESERVE // 2:  # what notes it may take its time
            self.on_reserved()
        return self._taken

    def reserve(self) -> int:
        """Give a number that no event has or will have before `on_reserved` is called."""
        self._reserved = self._taken + RESERVE
        return self._reserved

    # -- telling ----------------------------------------------------------------

    def answer(self, asker: Listener, frame: bytes, seq: int | None) -> None:
        """Send an answer to whoever asked and to those who follow; kept if nobody is there. `seq`: if it is in it."""
        numbered = seq is not None
        # Kept until it has been given to everybody who should have it.
        entry = self._journal.add(self._number(seq), frame, numbered=numbered, kept=True)
        unsent = partial(self._journal.keep, entry)
        given = bool(self._followers) or asker.open
        for follower in list(self._followers.values()):
            given &= self._give(follower, entry, unsent)
        if given:
            self._journal.delivered(entry)
        # Last: if this is what the connection is cut off for, `unsent` is called at once.
        if asker.open and asker.id not in self._followers:
            asker.put_frame(entry.with_seq() if asker.streams else frame, unsent)

    def event(self, asker: Listener, frame: bytes, seq: int, told: bytes | None = None) -> bool:
        """Send an event likewise, but leave it out where the asker reads too slowly, and say so.

        `told` is what the asker gets, if that is not `frame`: it names what was left out before, for it alone.
        """
        entry = self._journal.add(seq, frame, numbered=True)
        for follower in list(self._followers.values()):
            self._give(follower, entry)
        if asker.id in self._followers or not asker.open:
            return True
        return asker.offer_frame(frame if told is None else told)

    def status(self, status: Status, detail: str, cause: Cause | UnsetType = UNSET) -> None:
        """Tell what has become of the session."""
        seq = self.next_seq()
        message = SessionStatus(session_id=self.session_id, seq=seq, status=status, detail=detail, cause=cause)
        entry = self._journal.add(seq, dump(message), numbered=True)
        for follower in list(self._followers.values()):
            self._give(follower, entry)
        for listener in list(self._audience.values()):
            if listener.id not in self._followers:
                listener.offer_frame(entry.frame)

    def notice(self, note: ClosedNote) -> None:
        """Tell how the session's life before this one ended, first of all, to each that follows its events."""
        message = SessionStatus(
            session_id=self.session_id,
            seq=self.next_seq(),
            status="closed",
            detail=note.detail(),
            cause="session_closed",
            closed_at=note.closed_at,
            what_ran=note.what_ran,
            answers_lost=note.answers_lost or UNSET,
        )
        self._notice = dump(message)

    def drop_notice(self) -> None:
        """Tell that no more: a result has."""
        self._notice = None
        self._noticed.clear()

    @property
    def unread(self) -> int:
        """How many answers nobody has got."""
        return self._journal.unread

    def _number(self, seq: int | None) -> int:
        return self.next_seq() if seq is None else seq

    # -- hearing ----------------------------------------------------------------

    def join(self, listener: Listener) -> None:
        """Tell a connection of the session's status from now on, unless it is gone: nobody would take it out again."""
        if listener.open:
            if listener.streams:
                self._give_notice(listener)
            self._audience[listener.id] = listener

    def _give_notice(self, listener: Listener) -> None:
        if self._notice is not None and listener.open and listener.id not in self._noticed:
            self._noticed.add(listener.id)
            listener.put_frame(self._notice)

    def leave(self, listener_id: str) -> None:
        """Forget a connection that is gone."""
        self._audience.pop(listener_id, None)
        self._followers.pop(listener_id, None)
        self._noticed.discard(listener_id)

    def dismiss(self, listener: Listener) -> None:
        """Leave one connection out of what is told of the end: the answer to its request tells it."""
        if not listener.streams:
            self._audience.pop(listener.id, None)

    def follow(
        self, listener: Listener, after: int, request_id: str | UnsetType, warnings: list[str] | UnsetType = UNSET
    ) -> None:
        """Send `resumed`, then what is kept after `after`, then everything as it is told.

        How the session's life before ended, if it is to be told, comes before that.
        """
        self._give_notice(listener)
        anew = after > self._taken
        follower = _Follower(listener, cursor=0 if anew else after, told_lost=0)
        self._followers[listener.id] = follower
        self.join(listener)
        listener.put_frame(dump(self._resumed(follower, request_id, warnings, anew=anew)))
        self._tasks.create(self._catch_up(follower))

    def _resumed(
        self,
        follower: _Follower,
        request_id: str | UnsetType = UNSET,
        warnings: list[str] | UnsetType = UNSET,
        *,
        anew: bool = False,
    ) -> Resumed:
        after = max(follower.cursor, follower.told_lost)
        lost: SeqRange | UnsetType = UNSET
        if self._journal.lost > after:
            lost = SeqRange(after + 1, self._journal.lost)
            follower.told_lost = self._journal.lost
        return Resumed(
            session_id=self.session_id,
            request_id=request_id,
            first=after + 1,
            last=self._taken,
            lost=lost,
            anew=anew or UNSET,
            created=self.created,
            warnings=warnings,
        )

    def _give(self, follower: _Follower, entry: Entry, unsent: Callable[[], None] | None = None) -> bool:
        if not follower.behind and follower.listener.offer_frame(entry.with_seq(), unsent):
            follower.cursor = entry.seq
            return True
        if not follower.behind:
            follower.behind = True
            self._tasks.create(self._catch_up(follower))
        return False

    async def _catch_up(self, follower: _Follower) -> None:
        """Replay from the journal as fast as the connection reads; until it has all, or is gone."""
        listener = follower.listener
        while self._follows(follower):
            if self._journal.lost > max(follower.cursor, follower.told_lost):
                listener.put_frame(dump(self._resumed(follower)))
            batch = self._journal.after(follower.cursor, BATCH)
            if not batch:
                follower.behind = False
                return
            for entry in batch:
                await listener.room()
                if not self._follows(follower):
                    return
                # What nobody waits for takes no room from what somebody does.
                unsent = partial(self._journal.keep, entry) if entry.kept else None
                if not listener.offer_frame(entry.with_seq(), unsent):
                    break
                follower.cursor = entry.seq
                if all(other.cursor >= entry.seq for other in self._followers.values()):
                    self._journal.delivered(entry)
            await asyncio.sleep(0)  # the others' turn

    def _follows(self, follower: _Follower) -> bool:
        return follower.listener.open and self._followers.get(follower.listener.id) is follower


def _nothing() -> None:
    """Note nothing: the session is not known to anybody else."""
