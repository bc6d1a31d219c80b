"""A connection that is cut off because its client reads nothing gets no more events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import UNSET

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.identity.logins import Login
from kernelbridge.identity.principal import Identity, Principal
from kernelbridge.metrics import Metrics
from kernelbridge.rates import Pace, Rates
from kernelbridge.server.previous_clients import PreviousClient
from kernelbridge.server.websocket.connection import Connection
from kernelbridge.server.websocket.outbox import HIGH_WATER, LIMIT
from kernelbridge.server.websocket.socket import Socket
from kernelbridge.workspace.journal.feed import Feed
from kernelbridge.workspace.registry import Registry

PATIENCE = 10.0


class Back(PreviousClient):
    """A connection that takes everything at once."""

    id = "back"
    open = True

    def __init__(self) -> None:
        super().__init__(Principal(), cast("Registry", None))
        self.frames: list[dict[str, Any]] = []

    def put_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> None:  # noqa: ARG002 - of `Listener`
        self.frames.append(json.loads(frame))

    def offer_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> bool:
        self.put_frame(frame, unsent)
        return True


def deaf() -> Connection:
    """Return a connection whose client takes nothing: it is not run."""
    return Connection(
        cast("Socket", None),
        login=Login(Identity(Principal())),
        streams=False,
        strict=False,
        registry=cast("Registry", SimpleNamespace(metrics=Metrics())),
        warning=None,
        pace=Pace(Rates(0, 0), lambda: 0.0),
    )


def cut_off(connection: Connection) -> None:
    """Queue more than the outbox may hold."""
    connection.put_frame(b"some")
    connection.put_frame(b"x" * LIMIT)


@pytest.fixture
async def tasks() -> AsyncIterator[TaskSet]:
    made = TaskSet()
    yield made
    await made.aclose()


def make(tasks: TaskSet, *, size: int) -> Feed:
    return Feed("s", created="now", journal_size=size, kept_size=1 << 20, tasks=tasks)


def answer(feed: Feed, asker: Connection, text: str) -> None:
    feed.answer(asker, json.dumps({"text": text}).encode(), None)


async def settled() -> set[asyncio.Task[Any]]:
    """Wait until the tasks have ended; return those that have not."""
    going_on = asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}
    return (await asyncio.wait(going_on, timeout=PATIENCE))[1] if going_on else set()


async def told(feed: Feed) -> list[str]:
    """Return the texts that somebody hears who comes now."""
    back = Back()
    feed.follow(back, 0, UNSET)
    await settled()
    return [frame["text"] for frame in back.frames if "text" in frame]


async def test_nobody_goes_on_trying_to_give_it_what_it_misses(tasks: TaskSet) -> None:
    feed, follower = make(tasks, size=8 << 20), deaf()
    feed.follow(follower, 0, UNSET)
    assert not await settled()
    follower.put_frame(b"x" * (HIGH_WATER + 1))
    answer(feed, follower, "missed")
    cut_off(follower)
    assert not await settled()


async def test_an_answer_that_it_is_cut_off_for_is_kept(tasks: TaskSet) -> None:
    feed, asker = make(tasks, size=1000), deaf()
    asker.put_frame(b"x" * LIMIT)
    answer(feed, asker, "y" * 5000)
    assert await told(feed) == ["y" * 5000]


@pytest.mark.parametrize("follows", [False, True])
async def test_answers_that_come_while_nobody_has_noticed_its_end_are_kept(tasks: TaskSet, *, follows: bool) -> None:
    feed, asker = make(tasks, size=1000), deaf()
    if follows:
        feed.follow(asker, 0, UNSET)
        assert not await settled()
    cut_off(asker)
    answer(feed, asker, "y" * 5000)
    answer(feed, asker, "z" * 5000)
    feed.leave(asker.id)
    assert await told(feed) == ["y" * 5000, "z" * 5000]
