"""One watcher for many: who is told what, when somebody reads too slowly, and how it ends."""

import asyncio
import contextlib
import errno
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from kernelbridge.aio.threads import BlockingWork
from kernelbridge.errors import FileError, KernelBridgeError, LimitExceeded
from kernelbridge.workspace.files import watcher as module
from kernelbridge.workspace.files.inotify_tree import Change, Changes, WatchTree
from kernelbridge.workspace.files.watcher import Watch, Watcher


class Told:
    """A client, which reads nothing while `slow`."""

    def __init__(self) -> None:
        self.slow = False
        self.events: list[tuple[dict[str, Change], bool]] = []
        self.errors: list[KernelBridgeError] = []
        self.tries = 0
        self._changed = asyncio.Event()

    def send(self, changes: Mapping[str, Change], more: bool) -> bool:  # noqa: FBT001 - as `SendChanges`
        self.tries += 1
        if not self.slow:
            self.events.append((dict(changes), more))
        self._changed.set()
        return not self.slow

    def failed(self, error: KernelBridgeError) -> None:
        self.errors.append(error)
        self._changed.set()

    async def something(self) -> None:
        async with asyncio.timeout(20):
            await self._changed.wait()
        self._changed.clear()


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
async def watcher(tmp_path: Path, executor: Executor) -> AsyncIterator[Watcher]:
    (tmp_path / "files").mkdir()
    watcher = Watcher(tmp_path / "files", executor)
    yield watcher
    await watcher.aclose()


async def begun(watcher: Watcher, told: Told, *, hidden: bool = False) -> Watch:
    watch = await watcher.join(hidden=hidden, send=told.send, failed=told.failed)
    watch.begin()
    return watch


def inotify_descriptors() -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found += "inotify" in str(link.readlink())
    return found


async def test_nothing_is_sent_before_the_beginning_and_nothing_lost(watcher: Watcher, tmp_path: Path) -> None:
    told, other = Told(), Told()
    watch = await watcher.join(hidden=False, send=told.send, failed=told.failed)
    await begun(watcher, other)
    (tmp_path / "files" / "a").touch()
    await other.something()
    assert told.events == []
    watch.begin()
    assert told.events == [({"a": "added"}, False)]


async def test_a_slow_client_gets_changes_later_and_together(watcher: Watcher, tmp_path: Path) -> None:
    told, other = Told(), Told()
    await begun(watcher, told)
    await begun(watcher, other)
    told.slow = True
    for name in ("a", "b"):
        (tmp_path / "files" / name).touch()
        await other.something()
    (tmp_path / "files" / "a").unlink()
    await other.something()
    assert told.events == []
    told.slow = False
    tries = told.tries
    while not told.events:
        await told.something()
    assert told.tries > tries
    assert told.events == [({"b": "added"}, False)]


async def test_many_changes_are_bounded(watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANGES", 5)
    told = Told()
    await begun(watcher, told)
    for number in range(50):
        (tmp_path / "files" / str(number)).touch()
    await told.something()
    assert len(told.events[0][0]) == 5
    assert told.events[0][1] is True


async def test_it_runs_while_there_is_a_watch(watcher: Watcher) -> None:
    before = inotify_descriptors()
    first = await begun(watcher, Told())
    second = await begun(watcher, Told())
    assert inotify_descriptors() == before + 1
    first.end()
    assert inotify_descriptors() == before + 1
    second.end()
    second.end()
    async with asyncio.timeout(20):
        while inotify_descriptors() > before:
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0)
    third = await begun(watcher, Told())
    assert inotify_descriptors() == before + 1
    third.end()
    fourth = await begun(watcher, Told(), hidden=True)
    fourth.end()
    await watcher.aclose()
    assert inotify_descriptors() == before


async def test_an_owner_has_one_watch(watcher: Watcher, tmp_path: Path) -> None:
    first, second = Told(), Told()
    watcher.replace("me", await begun(watcher, first))
    watcher.replace("me", await begun(watcher, second))
    (tmp_path / "files" / "a").touch()
    await second.something()
    assert (first.events, second.events) == ([], [({"a": "added"}, False)])


async def test_a_watch_that_ends_by_itself_says_why_and_can_begin_again(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inotify_descriptors()
    told = Told()
    ended: list[str] = []

    class SmallTree(WatchTree):
        """A tree with room for three names."""

        def __init__(self, root: Path, *, hidden: bool) -> None:
            super().__init__(root, hidden=hidden, names=3)

    with monkeypatch.context() as patched:
        patched.setattr(module, "WatchTree", SmallTree)
        watch = await begun(watcher, told)
        watch.on_end = lambda: ended.append("end")
        for number in range(9):
            (tmp_path / "files" / str(number)).touch()
        while not told.errors:
            await told.something()
        assert isinstance(told.errors[0], LimitExceeded)
        assert ended == ["end"]
        with pytest.raises(LimitExceeded):
            await begun(watcher, told)
    async with asyncio.timeout(20):
        while inotify_descriptors() > before:
            await asyncio.to_thread(lambda: None)
    await begun(watcher, told)


async def test_a_failure_of_the_system_is_reported(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ExhaustedTree(WatchTree):
        """A tree whose process has no descriptor left when something changes."""

        def turn(self) -> BlockingWork[Changes]:
            raise OSError(errno.EMFILE, "Too many open files")

    told = Told()
    with monkeypatch.context() as patched:
        patched.setattr(module, "WatchTree", ExhaustedTree)
        await begun(watcher, told)
        (tmp_path / "files" / "a").touch()
        await told.something()
    assert [(type(error), error.reason) for error in told.errors] == [
        (FileError, "Too many open files; watch them again")
    ]
    await begun(watcher, told)
    (tmp_path / "files" / "b").touch()
    await told.something()
    assert told.events == [({"b": "added"}, False)]


async def test_a_watch_that_begins_while_the_session_ends_is_an_error(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    class LargeTree(WatchTree):
        """A tree that takes long to look at."""

        def start(self) -> BlockingWork[None]:
            reached.set()
            go_on.wait(20)
            yield from super().start()

    monkeypatch.setattr(module, "WatchTree", LargeTree)
    before = inotify_descriptors()
    told = Told()
    joining = asyncio.create_task(begun(watcher, told))
    await asyncio.to_thread(reached.wait, 20)
    await watcher.aclose()
    go_on.set()
    with pytest.raises(FileError, match="session was closed"):
        await joining
    while inotify_descriptors() > before:
        await asyncio.wait({joining}, timeout=0)


async def test_the_end_of_the_session_is_reported(watcher: Watcher) -> None:
    told = Told()
    await begun(watcher, told)
    await watcher.aclose()
    assert [type(error) for error in told.errors] == [FileError]
