"""Output that is too long for a message, in a file of the workspace's hidden area.

    spill = spills.new()                 # no file yet; None if the server writes no such files
    spill.begin(["all", "so far"])       # never blocks: threads of the executor write the file
    spill.write("text")
    spilled = await spill.finish()       # Spilled(path=".kernelbridge/output/….txt", complete=True)

A file holds at most `limit` bytes. The text that waits for the disk is bounded too: while `behind` returns a future,
the run should be held up. If `BACKLOG` bytes wait all the same, or the disk does not answer for `PATIENCE` seconds, the
file ends early. A file that ends early, or cannot be made, affects nothing else: `Spilled` and the log say so. The
newest `KEPT` files of a workspace are kept, fewer if they have `limit` bytes together.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime

import structlog

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.aio.threads import finish, in_thread
from kernelbridge.disk.session_disks import SessionDisk
from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter.bounded import Spilled, size
from kernelbridge.workspace.files import safe_open
from kernelbridge.workspace.files.store import WorkspaceFiles

log = structlog.get_logger(__name__)

DIRECTORY = (".kernelbridge", "output")
"""Where the files are, relative to the workspace."""
KEPT = 16
"""Files of a workspace that are kept, the newest included."""
HIGH_WATER = 2 << 20
"""Bytes waiting for the disk above which a run is held up."""
BACKLOG = 16 << 20
"""Bytes that may wait for the disk, not counting those that a file begins with."""
PATIENCE = 10.0
"""Seconds to wait for a disk that does not answer: in the middle of a run, and at its end."""

_BATCH = 1 << 20
"""Bytes that a thread writes before it turns to other work."""
_LOOKED_AT = 10_000
"""Entries of the directory that are read: the sandbox can put any number there."""
_OWN = re.compile(r"[0-9]{8}T[0-9]{12}-[a-z]+-[0-9a-f]{8}\.txt")


class SpillFiles:
    """The files of one workspace."""

    def __init__(
        self,
        files: Callable[[], WorkspaceFiles],
        executor: Executor,
        tasks: TaskSet,
        *,
        limit: int,
        disk: SessionDisk,
    ) -> None:
        """Make no file yet. `files` is called in threads; `limit` is in bytes for each file, 0 for no files."""
        self._files = files
        self._disk = disk
        self._executor = executor
        self._tasks = tasks
        self._limit = limit
        self._open: set[SpillFile] = set()

    def new(self, kind: str = "cell") -> SpillFile | None:
        """Return a file for the output of one run; `kind` (lower-case letters) is part of its name."""
        if not self._limit:
            return None
        file = _File(kind, self._files, self._limit, self._disk)
        spill = SpillFile(file, self._executor, self._tasks, self._open.discard)
        self._open.add(spill)
        return spill

    def behind(self) -> asyncio.Future[None] | None:
        """Return None, or a future that is done when the disk has caught up; hold up the runs until then."""
        for spill in self._open:
            if later := spill.behind():
                return later
        return None

    async def aclose(self) -> None:
        """Close all files, after all tasks have ended: the session ends, and with it runs that were not finished."""
        while self._open:
            await in_thread(self._executor, self._open.pop().close)


class SpillFile:
    """One file, made when it is first written to. Not thread-safe: for the event loop, which it never blocks."""

    def __init__(self, file: _File, executor: Executor, tasks: TaskSet, over: Callable[[SpillFile], None]) -> None:
        self._file = file
        self._executor = executor
        self._tasks = tasks
        self._over = over
        self._waiting: deque[str | None] = deque()
        """Texts; None empties the file."""
        self._backlog = 0
        self._room = BACKLOG
        self._cut = False
        self._closing = self._removing = False
        self._writer: asyncio.Task[None] | None = None
        self._spilled: Spilled | None = None
        self._caught_up: asyncio.Future[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def begin(self, texts: Sequence[str]) -> None:
        """Start the file, or start it again, with these texts."""
        length = sum(map(size, texts))
        self._waiting.clear()
        self._waiting.extend((None, *texts))
        self._backlog, self._room, self._cut = length, BACKLOG + length, False
        self._work()

    def write(self, text: str) -> None:
        """Append a text."""
        length = size(text)
        if self._cut:
            return
        if self._backlog + length > self._room:
            self._cut = True
            log.warning("output_file_cut", why="the disk is slower than the output")
            return
        self._waiting.append(text)
        self._backlog += length
        self._work()

    def behind(self) -> asyncio.Future[None] | None:
        """Return None, or a future that is done when the disk has caught up; see `SpillFiles.behind`."""
        if self._caught_up is None and self._backlog > HIGH_WATER and not (self._cut or self._closing):
            loop = asyncio.get_running_loop()
            self._caught_up = loop.create_future()
            self._patience = loop.call_later(PATIENCE, self._give_up)
        return self._caught_up

    def discard(self) -> None:
        """Remove the file; call this instead of `finish`."""
        self._waiting.clear()
        self._closing = self._removing = True
        self._work()

    async def finish(self) -> Spilled:
        """Wait until everything is on disk, for at most `PATIENCE` seconds, and close the file."""
        self._closing = True
        await asyncio.wait({self._work()}, timeout=PATIENCE)
        if self._spilled is not None:
            return self._spilled
        self._give_up()
        self._removing = self._file.path is None  # no result names a file that is made later
        return Spilled(self._file.path, complete=False)

    def close(self) -> Spilled:
        """Close the file as it is, or remove a discarded one; blocking."""
        return self._file.close(remove=self._removing, complete=not self._cut)

    def _work(self) -> asyncio.Task[None]:
        if self._writer is None or self._writer.done():
            self._writer = self._tasks.create(self._write_out())
        return self._writer

    async def _write_out(self) -> None:
        """Write what waits, and close the file if it ends here."""
        while self._waiting:
            batch, length = self._take()
            await in_thread(self._executor, self._file.write, batch)
            self._backlog = max(0, self._backlog - length)
            if self._backlog <= HIGH_WATER // 2:
                self._caught_up_now()
        if self._closing:
            self._spilled = await in_thread(self._executor, self.close)
            self._over(self)

    def _take(self) -> tuple[list[str | None], int]:
        batch: list[str | None] = []
        length = 0
        while self._waiting and length < _BATCH:
            text = self._waiting.popleft()
            batch.append(text)
            length += size(text or "")
        return batch, length

    def _caught_up_now(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if self._caught_up is not None:
            self._caught_up.set_result(None)
            self._caught_up = None

    def _give_up(self) -> None:
        """End the file here: the disk does not answer."""
        log.warning("output_file_cut", why="the disk does not answer")
        self._cut = True
        self._waiting.clear()
        self._caught_up_now()


class _File:
    """The file itself. Blocking; for one thread at a time."""

    def __init__(self, kind: str, files: Callable[[], WorkspaceFiles], limit: int, disk: SessionDisk) -> None:
        self.path: str | None = None
        self._disk = disk
        self._kind = kind
        self._files = files
        self._limit = limit
        self._fd = -1
        self._size = 0
        self._full = False
        self._failed = False

    def write(self, texts: Sequence[str | None]) -> None:
        """Write texts; None empties the file. After a failure, nothing more is written."""
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
            self._failed = True  # a bug: the run that waits for the file must end all the same
            log.exception("output_file_failed", path=self.path)

    def close(self, *, remove: bool, complete: bool) -> Spilled:
        """Close the file, and remove it if `remove`. Idempotent."""
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
        finish(self._disk.admitting(len(data), 0, "The file with the whole output ends early"))
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
    """Remove the oldest files to make room for one more."""
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
            # The sandbox has removed it, or put a directory in its place.
            if exc.errno not in {errno.ENOENT, errno.EISDIR, errno.EPERM}:
                raise
