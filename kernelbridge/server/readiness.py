"""Whether a new session could start now, for `GET /readyz`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

from kernelbridge.errors import ImageError, KernelBridgeError
from kernelbridge.runtimes.contract import Runtime
from kernelbridge.settings.quantities import human_size
from kernelbridge.workspace.files.data_directory import EXHAUSTED

PATIENCE = 3.0
"""Seconds after which a check without an answer counts as missing."""
FRESH = 1.0
"""Seconds for which an answer is reused, so that frequent requests cost little."""


class Readiness:
    """Checks what a new session needs: runtime, image and disk. There is one check at a time for all requests."""

    def __init__(self, runtime: Runtime, data: Path, executor: Executor) -> None:
        self._runtime = runtime
        self._data = data
        self._executor = executor
        self._checks: dict[str, asyncio.Task[tuple[str, str] | None]] = {}
        self._missing: Mapping[str, str] = {}
        self._until = float("-inf")
        self._checking: asyncio.Task[Mapping[str, str]] | None = None

    async def missing(self) -> Mapping[str, str]:
        """Return what is missing (`runtime`, `image`, `disk`) and why; empty if a session could start.

        Cancellation does not end the check, because other requests wait for it.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._until:
            return self._missing
        if self._checking is None:
            self._checking = loop.create_task(self._check())
        return await asyncio.shield(self._checking)

    async def aclose(self) -> None:
        """Cancel the checks. Idempotent."""
        tasks: list[asyncio.Task[object]] = [*self._checks.values()]
        if self._checking is not None:
            tasks.append(self._checking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self) -> Mapping[str, str]:
        try:
            for name, check in (("runtime", self._sandbox), ("disk", self._disk)):
                if name not in self._checks:  # a check that hangs is not started again
                    self._checks[name] = asyncio.get_running_loop().create_task(check())
            await asyncio.wait(self._checks.values(), timeout=PATIENCE)
            missing: dict[str, str] = {}
            for name, task in list(self._checks.items()):
                if not task.done():
                    missing[name] = f"no answer within {PATIENCE:g} s"
                    continue
                del self._checks[name]
                if (found := task.result()) is not None:
                    missing.update([found])
            self._missing, self._until = missing, asyncio.get_running_loop().time() + FRESH
            return missing
        finally:
            self._checking = None

    async def _sandbox(self) -> tuple[str, str] | None:
        """Check whether the runtime answers and has the image."""
        try:
            await self._runtime.prepare()
        except ImageError as exc:
            return "image", str(exc)
        except KernelBridgeError as exc:
            return "runtime", str(exc)
        return None

    async def _disk(self) -> tuple[str, str] | None:
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._executor, os.statvfs, self._data)
        except OSError as exc:
            return "disk", f"{self._data}: {exc.strerror}"
        free = found.f_bavail * found.f_frsize
        if found.f_flag & os.ST_RDONLY:
            return "disk", f"{self._data} is on a file system mounted read-only"
        if free < EXHAUSTED:
            return "disk", f"{human_size(free)} free at {self._data}; free some space"
        if found.f_files and not found.f_favail:
            return "disk", f"no file can be created at {self._data}: its file system has no free inodes"
        return None
