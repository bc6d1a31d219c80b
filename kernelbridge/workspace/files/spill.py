"""Output that is too long for a message, in a file of the workspace's hidden area.

    spill = spills.new()                 # nothing is made yet; None when the server spills nothing
    spill.begin(["all", "so far"])       # never blocks: a thread of the executor writes it
    spill.write("text")
    spilled = await spill.finish()       # Spilled(path=".kernelbridge/output/….txt", complete=True)

A file holds at most `limit` bytes. What waits for the disk is bounded too: `behind` says when no more should be written
for now; where `BACKLOG` bytes wait all the same, or the disk takes nothing for `PATIENCE` seconds, the file ends.
A file that ends early, or cannot be made, costs nothing but itself: `Spilled` says so, and the log says why. The newest
`KEPT` files of a workspace are kept, fewer once they have `limit` bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from datetime import UTC, datetime

import structlog

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.bounded import Spilled, size
from kernelbridge.workspace.files import safe_open
from kernelbridge.workspace.files.store import WorkspaceFiles

log = structlog.get_logger(__name__)

DIRECTORY = (".kernelbridge", "output")
"""Where the files are, below the workspace's."""
KEPT = 16
"""Files of a workspace that are kept, the newest included."""
HIGH_WATER = 2 << 20
"""Bytes waiting for the disk above which it is behind."""
BACKLOG = 16 << 20
"""Bytes that may wait for the disk, beside those that a file begins with."""
PATIENCE = 10.0
"""Seconds that a run waits for the disk, while it goes on and when it is over."""

_BATCH = 1 << 20  # bytes written in one go, before other work of the executor has its turn
_LOOKED_AT = 10_000  # entries of the directory: the sandbox may have put any number there
_OWN = re.compile(r"[0-9]{8}T[0-9]{12}-[a-z]+-[0-9a-f]{8}\.txt")


class Spills:
    """The files of one workspace."""

    def __init__(self, files: Callable[[], WorkspaceFiles], executor: Executor, *, limit: int) -> None:
        """`files` is called in threads of `executor`; `limit` is in bytes for each file, 0 for none at all."""
        self._files = files
        self._executor = executor
        self._limit = limit
        self._open: set[Spill] = set()

    def new(self, kind: str = "cell") -> Spill | None:
        """Give a file to be, for one run; `kind` (lower-case letters) is part of its name."""
        if not self._limit:
            return None
        spill = Spill(_File(kind, self._files, self._limit), self._executor, self._open.discard)
        self._open.add(spill)
        return spill

    def behind(self) -> asyncio.Future[None] | None:
        """Give None, or what is done when the disk has caught up: until then its runs should be held up."""
        for spill in self._open:
            if later := spill.behind():
                return later
        return None


class Spill:
    """One file, made when it is first written to. `begin`, `write` and the like are for the event loop."""

    def __init__(self, file: _File, executor: Executor, over: Callable[[Spill], None]) -> None:
        self._executor = executor
        self._file = file
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._caught_up: asyncio.Future[None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()  # guards what follows; the thread that works owns the file
        self._waiting: deque[str | None] = deque()  # texts; None: what was written is forgotten
        self._backlog = 0
        self._room = BACKLOG
        self._working = False
        self._cut = False
        self._end: Future[Spilled] | None = None
        self._discarded = False

    def begin(self, texts: Sequence[str]) -> None:
        """Start, or start anew, with these texts."""
        length = sum(map(size, texts))
        with self._lock:
            self._waiting.clear()
            self._waiting.append(None)
            self._waiting.extend(texts)
            self._backlog = length
            self._room = BACKLOG + length
            self._cut = False
            self._work_on()

    def write(self, text: str) -> None:
        """Add a text at the end."""
        length = size(text)
        with self._lock:
            if self._cut:
                return
            if self._backlog + length > self._room:
                self._cut = True
                log.warning("output_file_cut", why="the disk is slower than the output")
                return
            self._waiting.append(text)
            self._backlog += length
            self._work_on()

    def behind(self) -> asyncio.Future[None] | None:
        """Give None, or what is done when the disk has caught up; see `Spills.behind`."""
        with self._lock:
            if self._caught_up is None and self._backlog > HIGH_WATER and not self._cut:
                self._caught_up = self._loop.create_future()
                self._patience = self._loop.call_later(PATIENCE, self._give_up)
            return self._caught_up

    def _go_on(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if self._caught_up is not None:
            self._caught_up.set_result(None)
            self._caught_up = None

    def _give_up(self) -> None:
        """End the file here: the disk does not answer."""
        log.warning("output_file_cut", why="the disk does not answer")
        with self._lock:
            self._cut = True
            self._waiting.clear()
        self._go_on()

    def discard(self) -> None:
        """Remove the file: nothing needs it. To be called instead of `finish`."""
        self._over(self)
        with self._lock:
            self._discarded = True
            self._waiting.clear()
            self._end = Future()
            self._work_on()

    async def finish(self) -> Spilled:
        """Wait until the disk has everything, for at most `PATIENCE` seconds, and close the file."""
        self._over(self)
        with self._lock:
            end = self._end = Future()
            self._work_on()
        ended = asyncio.wrap_future(end)
        await asyncio.wait({ended}, timeout=PATIENCE)
        if ended.done():
            return ended.result()
        self._give_up()
        return Spilled(self._file.path, complete=False)

    def _work_on(self) -> None:
        if not self._working:
            self._working = True
            self._executor.submit(self._work)

    def _work(self) -> None:
        """Write a batch, in a thread; never two at a time."""
        while True:
            batch, length = self._take()
            self._file.write(batch)
            with self._lock:
                self._backlog = max(0, self._backlog - length)
                if self._caught_up is not None and self._backlog <= HIGH_WATER // 2:
                    self._loop.call_soon_threadsafe(self._go_on)
                if not self._waiting:
                    self._working = False
                    end, discarded, cut = self._end, self._discarded, self._cut
                    break
                with contextlib.suppress(RuntimeError):  # the executor is ending: the rest is written here
                    self._executor.submit(self._work)
                    return
        if end is not None and not end.done():
            end.set_result(self._file.close(remove=discarded, complete=not cut))

    def _take(self) -> tuple[list[str | None], int]:
        batch: list[str | None] = []
        length = 0
        with self._lock:
            while self._waiting and length < _BATCH:
                text = self._waiting.popleft()
                batch.append(text)
                length += size(text or "")
        return batch, length


class _File:
    """The file itself; blocking, used by one thread at a time."""

    def __init__(self, kind: str, files: Callable[[], WorkspaceFiles], limit: int) -> None:
        self.path: str | None = None
        self._kind = kind
        self._files = files
        self._limit = limit
        self._fd = -1
        self._size = 0
        self._full = False
        self._failed = False

    def write(self, texts: Sequence[str | None]) -> None:
        """Write these; what cannot be written is left out, and everything behind it."""
        try:
            for restart, group in itertools.groupby(texts, lambda text: text is None):
                if restart:
                    self._restart()
                else:
                    self._append("".join(text for text in group if text is not None).encode("utf-8", "replace"))
        except (OSError, safe_open.PathRefusedError, KernelBridgeError) as exc:
            self._failed = True
            why = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else str(exc)
            log.warning("output_file_failed", path=self.path, why=why)
        except Exception:
            self._failed = True  # whoever waits for the file must hear of it all the same
            log.exception("output_file_failed", path=self.path)

    def close(self, *, remove: bool, complete: bool) -> Spilled:
        """Close it; with `remove`, its name goes too."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if remove and self.path is not None:
            with contextlib.suppress(OSError, safe_open.PathRefusedError), self._directory() as directory:
                os.unlink(self.path.rpartition("/")[2], dir_fd=directory)
            self.path = None
        return Spilled(self.path, complete=complete and self.path is not None and not (self._full or self._failed))

    def _restart(self) -> None:
        if self._fd < 0:
            self._open()
        os.ftruncate(self._fd, 0)
        self._size = 0
        self._full = self._failed = False

    def _append(self, data: bytes) -> None:
        if self._full or self._failed:
            return
        room = self._limit - self._size
        if len(data) > room:
            self._full = True
            data = data[:room].decode("utf-8", "ignore").encode()
        rest = memoryview(data)
        while rest:
            written = os.write(self._fd, rest)
            self._size += written
            rest = rest[written:]

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{self._kind}-{secrets.token_hex(4)}.txt"
        with self._directory() as directory:
            _prune(directory, self._limit)
            self._fd = os.open(name, flags, 0o600, dir_fd=directory)
            self.path = "/".join((*DIRECTORY, name))
            self._files().owner.give(self._fd, 0o644)

    def _directory(self) -> contextlib.AbstractContextManager[int]:
        files = self._files()
        return safe_open.directory(files.root, DIRECTORY, files.owner)


def _prune(directory: int, limit: int) -> None:
    """Remove the oldest files, so that one more can be made."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in itertools.islice(entries, _LOOKED_AT) if _OWN.fullmatch(entry.name)]
    total = 0
    for number, name in enumerate(sorted(names, reverse=True), 1):
        try:
            if number >= KEPT or total >= limit:
                os.unlink(name, dir_fd=directory)
            else:
                total += os.stat(name, dir_fd=directory, follow_symlinks=False).st_size
        except OSError as exc:
            # The sandbox has taken it away, or put a directory there: neither keeps anybody from going on.
            if exc.errno not in {errno.ENOENT, errno.EISDIR, errno.EPERM}:
                raise
