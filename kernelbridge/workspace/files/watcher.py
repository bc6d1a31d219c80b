"""Watching a workspace's files for all connections that ask: one watcher, from the first watch to the last."""

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
"""Changes in one event."""
_TOGETHER = 0.05
"""Seconds for which changes are collected."""
_SHARE = 4
"""The pause after a batch, in multiples of the time that it took: a flood of changes costs only a part of a thread."""
_AGAIN = 0.25
"""Seconds until changes are offered again to a client that reads too slowly."""

SendChanges = Callable[[Mapping[str, Change], bool], bool]
"""Send changes by path, and whether there were more; returns False if the client reads too slowly."""

_JOINED: Mapping[tuple[Change, Change], Change | None] = MappingProxyType(
    {
        ("added", "modified"): "added",
        ("added", "deleted"): None,
        ("modified", "deleted"): "deleted",
        ("deleted", "added"): "modified",
        ("deleted", "modified"): "modified",
    }
)
"""Two changes of one file as one change, if that is not the later one; None: no change."""


class Watch:
    """The watch of one connection. It sends nothing before `begin`."""

    def __init__(
        self, watcher: Watcher, *, hidden: bool, send: SendChanges, failed: Callable[[KernelBridgeError], None]
    ) -> None:
        self.hidden = hidden
        self.failed = failed
        self.on_end: Callable[[], None] | None = None
        """Called when the watch ends, for whatever reason."""
        self._watcher = watcher
        self._send = send
        self._begun = False
        self._waiting: dict[str, Change] = {}
        self._more = False

    def begin(self) -> None:
        """Send changes from now on, starting with those since the watch was made."""
        self._begun = True
        self._watcher.deliver()

    def end(self) -> None:
        """End the watch. Idempotent."""
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()
        self._watcher.leave(self)

    def add(self, changes: Mapping[str, Change], *, more: bool) -> None:
        """Collect changes for the next event."""
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
        """Send the collected changes, if the watch has begun; return False if that must be tried again."""
        if not self._begun or not (self._waiting or self._more):
            return True
        if not self._send({visible_name(path): change for path, change in sorted(self._waiting.items())}, self._more):
            return False
        self._waiting.clear()
        self._more = False
        return True


class Watcher:
    """Watches the files of one workspace while there is a watch."""

    def __init__(self, root: Path, executor: Executor) -> None:
        self._root = root
        self._executor = executor
        self._tasks = TaskSet()
        self._changing = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._hidden = False
        self._watches: set[Watch] = set()
        self._owned: dict[str, Watch] = {}
        """By the id of the connection."""
        self._again: asyncio.TimerHandle | None = None
        self._closed = False

    async def join(self, *, hidden: bool, send: SendChanges, failed: Callable[[KernelBridgeError], None]) -> Watch:
        """Start a watch; it reports every later change. Raises `LimitExceeded` and `FileError`.

        With `hidden`, it includes names that begin with a dot. `failed` is called once if the watch ends by itself.
        """
        watch = Watch(self, hidden=hidden, send=send, failed=failed)
        async with self._changing:
            if self._running is None or (hidden and not self._hidden):
                await self._start(hidden=hidden or self._hidden)
            if self._closed:  # meanwhile
                self._stop()
                raise _no_more("the session was closed")
            self._watches.add(watch)
        return watch

    def leave(self, watch: Watch) -> None:
        """Remove a watch. Idempotent."""
        self._watches.discard(watch)
        for owner, owned in list(self._owned.items()):
            if owned is watch:
                del self._owned[owner]
        if not self._watches:
            self._stop()

    def replace(self, owner: str, watch: Watch | None) -> None:
        """Replace the watch of a connection by another, or by none."""
        former = self._owned.pop(owner, None)
        if watch is not None:
            self._owned[owner] = watch
        if former is not None:
            former.end()

    async def aclose(self) -> None:
        """End all watches, because the session is closed. Idempotent."""
        self._closed = True
        self._stop()
        self._fail(_no_more("the session was closed"))
        await self._tasks.aclose()

    def deliver(self) -> None:
        """Send the collected changes to all; try again later for clients that read too slowly."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        slow = [watch for watch in list(self._watches) if not watch.deliver()]
        if slow:
            self._again = asyncio.get_running_loop().call_later(_AGAIN, self.deliver)

    async def _start(self, *, hidden: bool) -> None:
        tree = await in_turns(self._executor, self._tree(hidden=hidden))
        if self._running is not None:
            # Changes between the two trees are not known: present watches are told to list the files again.
            self._running.cancel()
            for watch in self._watches:
                watch.add({}, more=True)
        self._hidden = hidden
        held = [tree]
        self._running = self._tasks.create(self._run(held))
        # Not in the task: if it is cancelled before it starts, not even its `finally` runs.
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
        """Report changes of the tree in `held`; replace the tree when its events are lost."""
        loop = asyncio.get_running_loop()
        pause = _TOGETHER
        try:
            while True:
                tree = held[0]
                await _readable(tree.fd)
                await asyncio.sleep(pause)  # to collect changes
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
            self._running = None  # this task ends by itself, and must not be cancelled meanwhile
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
    return FileError("The session's files are not watched any more", f"{why}; watch them again")


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
