"""Who hears what a session tells: each frame once, in order, whoever reads how slowly."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from msgspec import UNSET

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.workspace.journal.feed import Feed

PATIENCE = 10.0


class StallingListener:
    """A connection that reads when it is told to, and has room for as many frames as it is told."""

    def __init__(self, name: str, *, streams: bool = False, capacity: int = 10_000) -> None:
        self.id = name
        self.streams = streams
        self.open = True
        self.capacity = capacity
        self.waiting: list[tuple[bytes, Callable[[], None] | None]] = []
        self.read: list[dict[str, Any]] = []
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self.stalls = asyncio.Event()
        """Set when the feed waits for it."""

    def put_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> None:
        self.waiting.append((frame, unsent))
        self._arrived.set()

    def offer_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> bool:
        if len(self.waiting) >= self.capacity:
            return False
        self.put_frame(frame, unsent)
        return True

    backlog = 0

    def on_close(self, _call: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    async def room(self, _level: int = 0) -> None:
        while self.open and len(self.waiting) >= self.capacity:
            self._room.clear()
            self.stalls.set()
            await self._room.wait()

    async def take(self, number: int) -> list[dict[str, Any]]:
        """Read so many frames."""
        while len(self.read) < number:
            while not self.waiting:
                self._arrived.clear()
                await asyncio.wait_for(self._arrived.wait(), PATIENCE)
            self.read.append(json.loads(self.waiting.pop(0)[0]))
            self._room.set()
        taken, self.read = self.read[:number], self.read[number:]
        return taken

    def leave(self, feed: Feed) -> None:
        """End, with frames unsent."""
        self.open = False
        for _, unsent in self.waiting:
            if unsent is not None:
                unsent()
        self.waiting.clear()
        self._room.set()
        feed.leave(self.id)


@pytest.fixture
async def tasks() -> AsyncIterator[TaskSet]:
    made = TaskSet()
    yield made
    await made.aclose()


def make(tasks: TaskSet, *, size: int = 1 << 20) -> Feed:
    return Feed("s", created="now", journal_size=size, kept_size=1 << 20, tasks=tasks)


@pytest.fixture
async def feed(tasks: TaskSet) -> Feed:
    return make(tasks)


def answer(feed: Feed, asker: StallingListener, text: str) -> None:
    feed.answer(asker, json.dumps({"text": text}).encode(), None)


def event(feed: Feed, asker: StallingListener, text: str) -> bool:
    seq = feed.next_seq()
    return feed.event(asker, json.dumps({"text": text, "seq": seq}).encode(), seq)


def texts(frames: list[dict[str, Any]]) -> list[str]:
    return [str(frame.get("text", frame.get("type"))) for frame in frames]


async def test_a_requester_gets_the_answer_and_one_that_streams_its_number_too(feed: Feed) -> None:
    plain, streaming = StallingListener("plain"), StallingListener("streaming", streams=True)
    answer(feed, plain, "a")
    answer(feed, streaming, "b")
    assert await plain.take(1) == [{"text": "a"}]
    assert await streaming.take(1) == [{"text": "b", "seq": 2}]


async def test_an_answer_without_a_connection_is_kept_and_an_event_is_stored(feed: Feed) -> None:
    gone, back = StallingListener("gone"), StallingListener("back")
    gone.leave(feed)
    assert event(feed, gone, "event")
    answer(feed, gone, "answer")
    feed.follow(back, 0, "r")
    frames = await back.take(3)
    assert frames[0] == {"type": "resumed", "sessionId": "s", "requestId": "r", "from": 1, "to": 2, "created": "now"}
    assert frames[1:] == [{"text": "event", "seq": 1}, {"text": "answer", "seq": 2}]


async def test_an_answer_that_was_queued_when_its_connection_ended_is_kept(tasks: TaskSet) -> None:
    feed = make(tasks, size=1000)
    asker, back = StallingListener("asker"), StallingListener("back")
    answer(feed, asker, "x" * 5000)
    answer(feed, asker, "small")
    asker.leave(feed)
    for _ in range(50):
        event(feed, asker, "more")
    feed.follow(back, 0, UNSET)
    frames = await back.take(3)
    assert texts(frames) == ["resumed", "x" * 5000, "small"]
    assert frames[0]["lost"]["from"] == 1


async def test_an_unsent_event_does_not_displace_a_kept_result(tasks: TaskSet) -> None:
    feed = make(tasks)
    asker, back = StallingListener("asker"), StallingListener("back")
    asker.open = False
    answer(feed, asker, "x" * 300_000)
    for number in range(5):
        for _ in range(20):
            event(feed, asker, "y" * 100_000)
        follower = StallingListener(str(number))
        feed.follow(follower, 1, UNSET)
        await follower.take(2)
        follower.leave(feed)
    for _ in range(20):
        event(feed, asker, "y" * 100_000)
    feed.follow(back, 0, UNSET)
    assert texts(await back.take(2)) == ["resumed", "x" * 300_000]


async def test_a_closed_connection_gets_no_status(feed: Feed) -> None:
    gone = StallingListener("gone")
    gone.open = False
    feed.join(gone)
    feed.status("paused", "")
    assert gone.waiting == []


async def test_an_asker_that_reads_too_slowly_is_said_to_and_followers_miss_nothing(feed: Feed) -> None:
    asker, follower = StallingListener("asker", capacity=2), StallingListener("follower")
    feed.follow(follower, 0, UNSET)
    await follower.take(1)
    assert [event(feed, asker, str(n)) for n in range(4)] == [True, True, False, False]
    assert texts(await follower.take(4)) == ["0", "1", "2", "3"]


async def test_a_follower_that_stalls_gets_the_rest_from_the_journal(feed: Feed) -> None:
    asker, follower = StallingListener("asker"), StallingListener("follower", capacity=3)
    feed.follow(follower, 0, UNSET)
    for n in range(1000):
        event(feed, asker, str(n))
    answer(feed, asker, "end")
    frames = (await follower.take(1002))[1:]
    assert texts(frames) == [*map(str, range(1000)), "end"]
    assert [frame["seq"] for frame in frames] == list(range(1, 1002))
    # It is caught up, and hears what comes at once.
    event(feed, asker, "live")
    assert texts(await follower.take(1)) == ["live"]


async def test_a_follower_that_stalls_too_long_learns_what_is_lost(tasks: TaskSet) -> None:
    feed = make(tasks, size=4000)
    asker, follower = StallingListener("asker"), StallingListener("follower", capacity=3)
    feed.follow(follower, 0, UNSET)
    for n in range(500):
        event(feed, asker, str(n))
    event(feed, asker, "last")
    frames = [*(await follower.take(1))]
    while texts(frames)[-1] != "last":
        frames += await follower.take(1)
    told = [frame for frame in frames if frame.get("type") == "resumed"]
    missing = set(range(1, 502)) - {frame["seq"] for frame in frames if "seq" in frame}
    said = {n for frame in told if "lost" in frame for n in range(frame["lost"]["from"], frame["lost"]["to"] + 1)}
    assert missing
    assert missing <= said


async def test_a_follower_learns_once_which_requests_are_lost_and_of_none_that_it_was_answered(tasks: TaskSet) -> None:
    feed = make(tasks, size=4000)
    feed.in_hand = lambda: {"runs"}
    asker, follower = StallingListener("asker"), StallingListener("follower", capacity=3)
    feed.answer(asker, b'{"text": "answered"}', None, "answered")
    feed.follow(follower, 0, UNSET, awaits=["never sent", "answered", "runs"])
    resumed, _ = await follower.take(2)
    assert resumed["unknownRequests"] == ["never sent"]
    for n in range(500):
        event(feed, asker, str(n))
    event(feed, asker, "last")
    frames = [*(await follower.take(1))]
    while texts(frames)[-1] != "last":
        frames += await follower.take(1)
    later = [frame for frame in frames if frame.get("type") == "resumed"]
    assert later
    assert not any("unknownRequests" in frame for frame in later)
    assert list(feed._followers["follower"].awaits) == ["runs"], "what it holds is bounded"
    feed.in_hand = frozenset
    assert feed._resumed(feed._followers["follower"]).unknown_requests == ["runs"]
    assert not feed._followers["follower"].awaits


async def test_a_follower_gets_an_answer_once(feed: Feed) -> None:
    follower = StallingListener("follower", streams=True)
    feed.follow(follower, 0, UNSET)
    feed.follow(follower, 0, UNSET)
    await follower.take(2)
    answer(feed, follower, "a")
    event(feed, follower, "b")
    assert texts(await follower.take(2)) == ["a", "b"]
    assert follower.waiting == []


async def test_numbers_that_the_session_never_reached_are_of_another_one(feed: Feed) -> None:
    asker, back = StallingListener("asker"), StallingListener("back")
    answer(feed, asker, "a")
    feed.follow(back, 5, UNSET)
    frames = await back.take(2)
    assert (frames[0]["anew"], frames[0]["from"], frames[1]["text"]) == (True, 1, "a")


async def test_status_goes_to_the_audience_and_to_followers_once(feed: Feed) -> None:
    plain, audience, follower = StallingListener("plain"), StallingListener("audience"), StallingListener("follower")
    feed.join(audience)
    feed.follow(follower, 0, UNSET)
    await follower.take(1)
    feed.status("ready", "it is")
    for listener in (audience, follower):
        (frame,) = await listener.take(1)
        assert (frame["type"], frame["status"], frame["seq"]) == ("session_status", "ready", 1)
    feed.exclude(audience)
    feed.status("closed", "it was")
    assert audience.waiting == plain.waiting == []
    assert (await follower.take(1))[0]["status"] == "closed"


async def test_a_follower_that_leaves_is_forgotten(feed: Feed) -> None:
    asker, follower = StallingListener("asker"), StallingListener("follower", capacity=1)
    feed.follow(follower, 0, UNSET)
    event(feed, asker, "a")
    event(feed, asker, "b")
    follower.leave(feed)
    event(feed, asker, "c")
    assert follower.waiting == []


async def test_numbers_go_on_behind_those_of_an_earlier_server(tasks: TaskSet) -> None:
    feed = Feed("s", created="now", journal_size=1 << 20, kept_size=1 << 20, tasks=tasks, last_seq=1000)
    listener = StallingListener("a")
    feed.follow(listener, 17, UNSET)
    feed.status("ready", "it is")
    resumed, status = await listener.take(2)
    assert (resumed["from"], resumed["to"], resumed["lost"]) == (18, 1000, {"from": 18, "to": 1000})
    assert "anew" not in resumed
    assert status["seq"] == 1001


async def test_a_reserve_is_asked_for_before_it_is_used_up(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelbridge.workspace.journal.feed.RESERVE", 5)
    noted: list[int] = []

    def note() -> None:
        noted.append(feed.reserve())

    feed.on_reserved = note
    for _ in range(10):  # nobody else knows the session yet
        feed.next_seq()
    assert noted == []
    note()
    for _ in range(20):
        before = noted[-1]
        assert feed.next_seq() < before, "what is noted now may not be on disk yet"
    assert noted == [15, 18, 21, 24, 27, 30, 33]


async def test_a_kept_answer_is_kept_until_the_slowest_follower_has_it(tasks: TaskSet) -> None:
    feed = make(tasks, size=1)  # nothing stays in the journal but what is kept
    gone, quick, slow = (StallingListener(name, capacity=1) for name in ("gone", "quick", "slow"))
    gone.open = False
    answer(feed, gone, "first")
    for follower in (quick, slow):
        feed.follow(follower, 0, UNSET)
        await asyncio.wait_for(follower.stalls.wait(), PATIENCE)
    answer(feed, gone, "second")
    assert texts(await quick.take(3)) == ["resumed", "first", "second"]
    assert texts(await slow.take(3)) == ["resumed", "first", "second"]
    late = StallingListener("late")
    feed.follow(late, 0, UNSET)
    (resumed,) = await late.take(1)
    assert resumed["lost"] == {"from": 1, "to": 2}, "everybody had it, so it was kept no longer"
