"""Deleting the files of sessions that nobody has used for long: looks again and again, and remembers in `usage.json`.

    {"clock": 86400.0, "used": {"<workspace id>": 3600.0}}

Seconds of the server's own uptime, see `usage_clock.py`. The file is written at each look and, so that a crash cannot
make a session look unused, whenever one begins or ends to be used. Where it cannot be written it is removed: what it
said before would be wrong, and what is not known counts as just used.
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
"""How many there are, at least, while something is kept that nobody uses."""
_RAREST, _OFTENEST = 3600.0, 0.1
"""Seconds between two of them."""


class Retention:
    """Deletes what nobody has used for `retain` seconds of the server's uptime."""

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
        self.interval = min(max(retain / _LOOKS, _OFTENEST), _RAREST)
        self._usage = self._read()
        self._counted = monotonic()
        self._changed = asyncio.Event()
        self._tasks = TaskSet()
        self._started = False

    def use(self, key: SessionKey) -> None:
        """Take note that a session has begun or ended to be used."""
        self._count()
        if self._usage.use(key.workspace_id):
            self._changed.set()

    def start(self, registry: Registry) -> None:
        """Begin to look."""
        self._started = True
        self._tasks.create(self._look_for_ever(registry))

    async def aclose(self) -> None:
        """Stop looking, and note what is known by now. Idempotent."""
        await self._tasks.aclose()
        if self._started:
            self._started = False
            self._count()
            await self._write()

    async def look(self, registry: Registry) -> None:
        """Delete what has expired, and what earlier deletions have left."""
        await in_thread(self._executor, self._data.remove_leftovers)
        keys = await in_thread(self._executor, self._data.sessions)
        self._count()
        in_use = {key.workspace_id for key in registry.in_use()}
        self._usage.found([key.workspace_id for key in keys], in_use=in_use)
        for key in keys:
            # Asked one by one: each deletion takes its time, and any session may be used meanwhile.
            if self._usage.unused_for(key.workspace_id) >= self._retain:
                await self._expire(registry, key)
        await self._write()

    async def _look_for_ever(self, registry: Registry) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.look(registry)
            except Exception:  # whatever it is, the next look may do better
                log.exception("retention_failed")
            following = loop.time() + self.interval
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(following):
                    while True:
                        await self._changed.wait()
                        await self._write()

    async def _expire(self, registry: Registry, key: SessionKey) -> None:
        told = log.bind(workspace=key.workspace_id, user_id=key.principal, session=key.session_id)
        try:
            if not await registry.delete_unused(key):
                return
        except FileError as exc:
            told.warning("files_not_expired", error=str(exc))
            return
        told.info("files_expired", unused_for=round(self._usage.unused_for(key.workspace_id)), retain=self._retain)
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
    """Forget what was counted: nobody counts any more, so it would be wrong when somebody does again."""
    try:
        (data.root / NAME).unlink(missing_ok=True)
    except OSError as exc:
        log.warning("usage_not_forgotten", path=str(data.root / NAME), error=str(exc))
