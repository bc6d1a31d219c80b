"""The frames that a session sends, and the connections that receive them.

    answer, event ──▶ Journal ──▶ the connection that sent the request, while it is open
                         │   └──▶ followers (`resume`): every frame, in order, without a gap
                         └──────▶ no connection: answers are kept until a connection follows
    status, …     ──▶ followers, and the audience: connections that opened the session or stream

A follower that reads slowly gets frames from the journal as fast as it reads; no other connection waits for it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

from msgspec import UNSET, UnsetType

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.protocol import dump
from kernelbridge.protocol.base import Cause
from kernelbridge.protocol.sessions import EgressDenied, Resumed, SeqRange, SessionStatus, Status
from kernelbridge.workspace.journal.journal import Entry, Journal

RESERVE = 1 << 20
"""Event numbers that are reserved at a time: the next server starts after them."""
BATCH = 200
"""Entries that are replayed before other tasks run."""


class Listener(Protocol):
    """A connection, as far as sessions use it. Only `room` waits; nothing raises."""

    id: str
    streams: bool

    @property
    def open(self) -> bool:
        """Whether the connection is open."""
        ...

    def put_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> None:
        """Queue a frame that must arrive; call `unsent` if the connection ends before the frame is sent."""
        ...

    def offer_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> bool:
        """Queue a frame and return True, or return False if too much waits already."""
        ...

    @property
    def backlog(self) -> int:
        """Bytes that the client has not read yet."""
        ...

    async def room(self, level: int = ...) -> None:
        """Wait until at most `level` bytes are unread (by default: few enough for `offer_frame`)."""
        ...

    def on_close(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call `call` when the connection ends; calling the result undoes that."""
        ...


@dataclass(slots=True, eq=False)
class _Follower:
    listener: Listener
    cursor: int
    """The number of the last frame that was queued for it."""
    reported_lost: int
    """The largest number that was reported to it as lost."""
    awaits: dict[str, None]
    """The requests whose answers it waits for, of those that it sent over a connection that was lost; in order.

    `resumed` drops those that no answer will follow for, so no more stay than the queues and the journal hold."""
    behind: bool = True
    """Whether it gets frames from the journal, as it reads: it is new, or did not accept a frame."""

    def received(self, entry: Entry) -> None:
        """Count a frame that was queued for it."""
        self.cursor = entry.seq
        if entry.request_id is not None:
            self.awaits.pop(entry.request_id, None)


class Feed:
    """Everything that one session sends."""

    def __init__(
        self, session_id: str, *, created: str, journal_size: int, kept_size: int, tasks: TaskSet, last_seq: int = 0
    ) -> None:
        """Start numbering after `last_seq`: an earlier server may have sent events up to it, which are lost."""
        self.session_id = session_id
        self.created = created
        self.on_reserved: Callable[[], object] = lambda: None
        """Called when half of the numbers are used that `reserve` reserved."""
        self.in_hand: Callable[[], AbstractSet[str]] = frozenset
        """Returns the ids of the requests that run or wait."""
        self._journal = Journal(size=journal_size, kept_size=kept_size, lost=last_seq)
        self._tasks = tasks
        self._numbers = count(last_seq + 1)
        self._taken = last_seq
        self._reserved = sys.maxsize
        self._followers: dict[str, _Follower] = {}
        self._audience: dict[str, Listener] = {}
        self._notice: bytes | None = None
        self._noticed: set[str] = set()

    def __repr__(self) -> str:
        return f"<Feed {self._journal}, {len(self._followers)} followers>"

    @property
    def last(self) -> int:
        """The number of the latest frame."""
        return self._journal.last

    def latest(self, most: int) -> list[Entry]:
        """Return the latest `most` frames that are kept, in order."""
        return self._journal.latest(most)

    def position(self, listener: Listener) -> int:
        """Return the number up to which a connection has received its frames, or knows that they are lost."""
        follower = self._followers.get(listener.id)
        return follower.cursor if follower is not None and follower.behind else self._taken

    def next_seq(self) -> int:
        """Return the number of the next event."""
        self._taken = next(self._numbers)
        if self._taken >= self._reserved - RESERVE // 2:  # early: writing the next reservation takes time
            self.on_reserved()
        return self._taken

    def reserve(self) -> int:
        """Reserve numbers, and return one that no event reaches before `on_reserved` is called."""
        self._reserved = self._taken + RESERVE
        return self._reserved

    # -- sending ------------------------------------------------------------------

    def answer(self, requester: Listener, frame: bytes, seq: int | None, request_id: str | None = None) -> None:
        """Send an answer to the requester and to all followers; without any of them, keep it.

        `seq` and `request_id` are those in the frame, or None if the frame has none.
        """
        numbered = seq is not None
        # Kept until it has been queued for all connections that should get it.
        seq = self.next_seq() if seq is None else seq
        entry = self._journal.add(seq, frame, numbered=numbered, kept=True, request_id=request_id)
        unsent = partial(self._journal.keep, entry)
        queued = bool(self._followers) or requester.open
        for follower in list(self._followers.values()):
            queued &= self._send(follower, entry, unsent)
        if queued:
            self._journal.delivered(entry)
        # Last: if the connection is closed because of this frame, `unsent` is called at once.
        if requester.open and requester.id not in self._followers:
            requester.put_frame(entry.with_seq() if requester.streams else frame, unsent)

    def event(self, requester: Listener, frame: bytes, seq: int, for_requester: bytes | None = None) -> bool:
        """Send an event; return False if it was left out for the requester, which reads too slowly.

        `for_requester` replaces `frame` for the requester: it names the events that were left out before.
        """
        entry = self._journal.add(seq, frame, numbered=True)
        for follower in list(self._followers.values()):
            self._send(follower, entry)
        if requester.id in self._followers or not requester.open:
            return True
        return requester.offer_frame(frame if for_requester is None else for_requester)

    def status(self, status: Status, detail: str, cause: Cause | UnsetType = UNSET) -> None:
        """Send a `session_status` to followers and the audience."""
        seq = self.next_seq()
        self._announce(SessionStatus(session_id=self.session_id, seq=seq, status=status, detail=detail, cause=cause))

    def egress_denied(self, host: str, port: int, reason: str, detail: str, request_id: str | UnsetType) -> None:
        """Send an `egress_denied` to followers and the audience."""
        self._announce(
            EgressDenied(
                session_id=self.session_id,
                request_id=request_id,
                seq=self.next_seq(),
                host=host,
                port=port,
                reason=reason,
                detail=detail,
            )
        )

    def _announce(self, message: SessionStatus | EgressDenied) -> None:
        entry = self._journal.add(message.seq, dump(message), numbered=True)
        for follower in list(self._followers.values()):
            self._send(follower, entry)
        for listener in list(self._audience.values()):
            if listener.id not in self._followers:
                listener.offer_frame(entry.frame)

    def set_notice(self, notice: SessionStatus) -> None:
        """Send how the session was closed before, as the first frame, to each connection that receives its events."""
        self._notice = dump(notice)

    def drop_notice(self) -> None:
        """Do not send the notice any more: a result has reported it."""
        self._notice = None
        self._noticed.clear()

    @property
    def unread(self) -> int:
        """How many answers no connection has received."""
        return self._journal.unread

    # -- connections ----------------------------------------------------------------

    def join(self, listener: Listener) -> None:
        """Send the session's status to a connection from now on; a closed connection is ignored."""
        if listener.open:
            if listener.streams:
                self._send_notice(listener)
            self._audience[listener.id] = listener

    def _send_notice(self, listener: Listener) -> None:
        if self._notice is not None and listener.open and listener.id not in self._noticed:
            self._noticed.add(listener.id)
            listener.put_frame(self._notice)

    def leave(self, listener_id: str) -> None:
        """Remove a connection that is closed."""
        self._audience.pop(listener_id, None)
        self._followers.pop(listener_id, None)
        self._noticed.discard(listener_id)

    def exclude(self, listener: Listener) -> None:
        """Send no more status to a connection that asked for the end: the answer to its request reports it."""
        if not listener.streams:
            self._audience.pop(listener.id, None)

    def follow(
        self,
        listener: Listener,
        after: int,
        request_id: str | UnsetType,
        warnings: list[str] | UnsetType = UNSET,
        awaits: Sequence[str] = (),
    ) -> None:
        """Send `resumed`, then the kept frames after the number `after`, then every frame as it comes.

        `resumed` names those of the requests in `awaits` that no answer will follow for. A notice (`set_notice`) is
        sent before all of them.
        """
        self._send_notice(listener)
        anew = after > self._taken
        follower = _Follower(listener, cursor=0 if anew else after, reported_lost=0, awaits=dict.fromkeys(awaits))
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
        after = max(follower.cursor, follower.reported_lost)
        lost: SeqRange | UnsetType = UNSET
        if self._journal.lost > after:
            lost = SeqRange(after + 1, self._journal.lost)
            follower.reported_lost = self._journal.lost
        unknown: list[str] = []
        if follower.awaits:
            expected = self.in_hand() | self._journal.answered(follower.cursor)
            unknown = [each for each in follower.awaits if each not in expected]
            follower.awaits = {each: None for each in follower.awaits if each in expected}
        return Resumed(
            session_id=self.session_id,
            request_id=request_id,
            first=after + 1,
            last=self._taken,
            lost=lost,
            anew=anew or UNSET,
            created=self.created,
            unknown_requests=unknown or UNSET,
            warnings=warnings,
        )

    def _send(self, follower: _Follower, entry: Entry, unsent: Callable[[], None] | None = None) -> bool:
        if not follower.behind and follower.listener.offer_frame(entry.with_seq(), unsent):
            follower.received(entry)
            return True
        if not follower.behind:
            follower.behind = True
            self._tasks.create(self._catch_up(follower))
        return False

    async def _catch_up(self, follower: _Follower) -> None:
        """Replay from the journal as fast as the connection reads, until it has everything or is closed."""
        listener = follower.listener
        while self._follows(follower):
            if self._journal.lost > max(follower.cursor, follower.reported_lost):
                listener.put_frame(dump(self._resumed(follower)))
            batch = self._journal.after(follower.cursor, BATCH)
            if not batch:
                follower.behind = False
                return
            for entry in batch:
                await listener.room()
                if not self._follows(follower):
                    return
                # If it is not sent, only a kept entry is kept again: others would displace kept ones.
                unsent = partial(self._journal.keep, entry) if entry.kept else None
                if not listener.offer_frame(entry.with_seq(), unsent):
                    break
                follower.received(entry)
                if all(other.cursor >= entry.seq for other in self._followers.values()):
                    self._journal.delivered(entry)
            await asyncio.sleep(0)  # let other tasks run

    def _follows(self, follower: _Follower) -> bool:
        return follower.listener.open and self._followers.get(follower.listener.id) is follower
