"""One watcher of a workspace's files for all who want to know: started with the first, stopped with the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from types import MappingProxyType

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.aio.threads import BlockingWork, in_turns
from kernelbridge.errors import FileError, KernelBridgeError
from kernelbridge.workspace.files.inotify_tree import Change, Changes, EventsLostError, WatchTree
from kernelbridge.workspace.files.names import is_hidden, visible_name

CHANGES = 1000
"""Changes that are told at once."""
_TOGETHER = 0.05
"""Seconds for which changes are collected."""
_SHARE = 4
"""How many times as long as the work on one batch took the next is waited for: what floods costs a part of a thread."""
_AGAIN = 0.25
"""Seconds after which a client that reads too slowly is tried again."""

Tell = Callable[[Mapping[str, Change], bool], bool]
"""Tell changes by path, and whether there were more; False when the client reads too slowly for it."""

_JOINED: Mapping[tuple[Change, Change], Change | None] = MappingProxyType(
    {
        ("added", "modified"): "added",
        ("added", "deleted"): None,
        ("modified", "deleted"): "deleted",
        ("deleted", "added"): "modified",
        ("deleted", "modified"): "modified",
    }
)
"""What two changes of one file are together, where it is not the later one."""


class Watch:
    """One who wants to know. Nothing is told before `begin`."""

    def __init__(
        self, watcher: Watcher, *, hidden: bool, tell: Tell, failed: Callable[[KernelBridgeError], None]
    ) -> None:
        self.hidden = hidden
        self.failed = failed
        self.on_end: Callable[[], None] | None = None
        """Called when it ends, whichever way."""
        self._watcher = watcher
        self._tell = tell
        self._begun = False
        self._waiting: dict[str, Change] = {}
        self._more = False

    def begin(self) -> None:
        """Tell from now on, beginning with what changed since this was made."""
        self._begun = True
        self._watcher.deliver()

    def end(self) -> None:
        """Tell no more. Idempotent."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()
        self._watcher.leave(self)

    def add(self, changes: Mapping[str, Change], *, more: bool) -> None:
        """Note what changed."""
        self._more = self._more or more
        for path, change in changes.items():
            if not self.hidden and is_hidden(path):
                continue
            before = self._waiting.pop(path, None)
            after = change if before is None else _JOINED.get((before, change), change)
            if after is None:
                continue
            if len(self._waiting) >= CHANGES:
                self._more = True
                break
            self._waiting[path] = after

    def deliver(self) -> bool:
        """Tell what is noted, if that is wanted yet; False if it has to be tried again."""
        if not self._begun or not (self._waiting or self._more):
            return True
        if not self._tell({visible_name(path): change for path, change in sorted(self._waiting.items())}, self._more):
            return False
        self._waiting.clear()
        self._more = False
        return True


class Watcher:
    """Watches one workspace while anybody wants to know."""

    def __init__(self, root: Path, executor: Executor) -> None:
        self._root = root
        self._executor = executor
        self._tasks = TaskSet()
        self._changing = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._hidden = False
        self._watches: set[Watch] = set()
        self._owned: dict[str, Watch] = {}
        """One for each connection that has one."""
        self._again: asyncio.TimerHandle | None = None
        self._closed = False

    async def join(self, *, hidden: bool, tell: Tell, failed: Callable[[KernelBridgeError], None]) -> Watch:
        """Watch for somebody; everything that changes after this is told. Raises `LimitExceeded` and `FileError`.

        `failed` is called once if it ends by itself; `hidden` asks for names that begin with a dot, too.
        """
        watch = Watch(self, hidden=hidden, tell=tell, failed=failed)
        async with self._changing:
            if self._running is None or (hidden and not self._hidden):
                await self._start(hidden=hidden or self._hidden)
            if self._closed:  # meanwhile
                self._stop()
                raise _no_more("the session was closed")
            self._watches.add(watch)
        return watch

    def leave(self, watch: Watch) -> None:
        """Watch for somebody no longer. Idempotent."""
        self._watches.discard(watch)
        for owner, owned in list(self._owned.items()):
            if owned is watch:
                del self._owned[owner]
        if not self._watches:
            self._stop()

    def replace(self, owner: str, watch: Watch | None) -> None:
        """Give an owner this watch, or none, in place of the one it had."""
        former = self._owned.pop(owner, None)
        if watch is not None:
            self._owned[owner] = watch
        if former is not None:
            former.end()

    async def aclose(self) -> None:
        """Watch for nobody any more, because the session is closed. Idempotent."""
        self._closed = True
        self._stop()
        self._fail(_no_more("the session was closed"))
        await self._tasks.aclose()

    def deliver(self) -> None:
        """Tell everybody what is noted; those who read too slowly a little later."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        slow = [watch for watch in list(self._watches) if not watch.deliver()]
        if slow:
            self._again = asyncio.get_running_loop().call_later(_AGAIN, self.deliver)

    async def _start(self, *, hidden: bool) -> None:
        tree = await in_turns(self._executor, self._tree(hidden=hidden))
        if self._running is not None:
            # What changed between the two is not known: those who watched already are told to look.
            self._running.cancel()
            for watch in self._watches:
                watch.add({}, more=True)
        self._hidden = hidden
        held = [tree]
        self._running = self._tasks.create(self._run(held))
        # Not in the task: one that is cancelled before it has begun does nothing, not even at its end.
        self._running.add_done_callback(lambda _task: held[0].close())

    def _stop(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._running is not None:
            self._running.cancel()
            self._running = None
            self._hidden = False

    async def _run(self, held: list[WatchTree]) -> None:
        """Watch by the one tree in `held`, and put another there when that has lost its way."""
        loop = asyncio.get_running_loop()
        pause = _TOGETHER
        try:
            while True:
                tree = held[0]
                await _readable(tree.fd)
                await asyncio.sleep(pause)  # so that what belongs together is told together
                start = loop.time()
                try:
                    changes = await in_turns(self._executor, tree.turn())
                except EventsLostError:
                    changes = Changes({}, more=True)
                    tree.close()
                    held[0] = await in_turns(self._executor, self._tree(hidden=tree.hidden))
                for watch in self._watches:
                    watch.add(changes.by_path, more=changes.more)
                self.deliver()
                pause = max(_TOGETHER, (loop.time() - start) * _SHARE)
        except (KernelBridgeError, OSError) as exc:
            self._running = None  # it ends by itself, and must not be cancelled meanwhile
            self._fail(exc if isinstance(exc, KernelBridgeError) else _no_more(str(exc.strerror)))

    def _fail(self, error: KernelBridgeError) -> None:
        for watch in list(self._watches):
            watch.end()
            watch.failed(error)

    def _tree(self, *, hidden: bool) -> BlockingWork[WatchTree]:
        tree = WatchTree(self._root, hidden=hidden)
        try:
            yield from tree.start()
        except BaseException:
            tree.close()
            raise
        return tree


def _no_more(why: str) -> FileError:
    return FileError("The session's files are not watched any more", f"{why}; watch them anew")


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def on_readable() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, on_readable)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
