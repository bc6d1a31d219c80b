"""Deleting the files of sessions that were not used for long: looks at them regularly, and keeps `usage.json`.

    {"clock": 86400.0, "used": {"<workspace id>": 3600.0}}

The times are seconds of the server's uptime; see `usage_clock.py`. The file is written at each look, and whenever the
use of a session starts or ends, so that after a crash no session looks unused. If it cannot be written, it is removed:
its old content would be wrong, and a session without an entry counts as just used.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor

import structlog

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.aio.threads import in_thread
from kernelbridge.errors import FileError
from kernelbridge.workspace.files.data_directory import DataDirectory, write_atomically
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.usage_clock import Usage

log = structlog.get_logger(__name__)

NAME = "usage.json"
_LOOKS = 10
"""At least so many looks happen while an unused session is kept."""
_LONGEST, _SHORTEST = 3600.0, 0.1
"""Seconds between two looks."""


class Retention:
    """Deletes the files of sessions that were not used for `retain` seconds of the server's uptime."""

    def __init__(
        self,
        data: DataDirectory,
        executor: Executor,
        *,
        retain: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._data = data
        self._path = data.root / NAME
        self._executor = executor
        self._retain = retain
        self._monotonic = monotonic
        self.interval = min(max(retain / _LOOKS, _SHORTEST), _LONGEST)
        self._usage = self._read()
        self._counted = monotonic()
        self._changed = asyncio.Event()
        self._tasks = TaskSet()
        self._started = False

    def use(self, key: SessionKey) -> None:
        """Note that the use of a session starts or ends."""
        self._count()
        if self._usage.use(key.workspace_id):
            self._changed.set()

    def start(self, registry: Registry) -> None:
        """Start to look."""
        self._started = True
        self._tasks.create(self._look_regularly(registry))

    async def aclose(self) -> None:
        """Stop looking, and write `usage.json`. Idempotent."""
        await self._tasks.aclose()
        if self._started:
            self._started = False
            self._count()
            await self._write()

    async def look(self, registry: Registry) -> None:
        """Delete the files of expired sessions, and what earlier deletions left over."""
        await in_thread(self._executor, self._data.remove_leftovers)
        keys = await in_thread(self._executor, self._data.sessions)
        self._count()
        in_use = {key.workspace_id for key in registry.in_use()}
        self._usage.found([key.workspace_id for key in keys], in_use=in_use)
        for key in keys:
            # One by one: a deletion takes time, and any other session may be used meanwhile.
            if self._usage.unused_for(key.workspace_id) >= self._retain:
                await self._expire(registry, key)
        await self._write()

    async def _look_regularly(self, registry: Registry) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.look(registry)
            except Exception:  # a bug: the next look may succeed all the same
                log.exception("retention_failed")
            following = loop.time() + self.interval
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(following):
                    while True:
                        await self._changed.wait()
                        await self._write()

    async def _expire(self, registry: Registry, key: SessionKey) -> None:
        session = log.bind(workspace=key.workspace_id, user_id=key.principal.subject, session=key.session_id)
        try:
            if not await registry.delete_unused(key):
                return
        except FileError as exc:
            session.warning("files_not_expired", error=str(exc))
            return
        session.info("files_expired", unused_for=round(self._usage.unused_for(key.workspace_id)), retain=self._retain)
        self._usage.forget(key.workspace_id)

    def _count(self) -> None:
        now = self._monotonic()
        self._usage.advance(now - self._counted)
        self._counted = now

    def _read(self) -> Usage:
        longest_step = 2 * self.interval
        try:
            return Usage.read(self._path.read_bytes(), longest_step=longest_step)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as exc:
            log.warning("usage_unreadable", path=str(self._path), error=str(exc), then="everything counts as just used")
        return Usage(longest_step=longest_step)

    async def _write(self) -> None:
        self._changed.clear()
        try:
            await in_thread(self._executor, write_atomically, self._path, self._usage.written())
        except OSError as exc:
            log.warning("usage_not_written", path=str(self._path), error=str(exc))
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def forget_usage(data: DataDirectory) -> None:
    """Remove `usage.json`: without retention, nothing keeps it up to date, and a later server must not trust it."""
    try:
        (data.root / NAME).unlink(missing_ok=True)
    except OSError as exc:
        log.warning("usage_not_removed", path=str(data.root / NAME), error=str(exc))
