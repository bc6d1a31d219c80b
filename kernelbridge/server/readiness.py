"""Whether a new session could start now: what `GET /readyz` says."""

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
"""Seconds that a look may take until what has not answered counts as missing."""
FRESH = 1.0
"""Seconds for which an answer is given again, so that asking often costs little."""


class Readiness:
    """Looks at what a new session needs: runtime, image and disk. One look at a time, whoever asks."""

    def __init__(self, runtime: Runtime, data: Path, executor: Executor) -> None:
        self._runtime = runtime
        self._data = data
        self._executor = executor
        self._checks: dict[str, asyncio.Task[tuple[str, str] | None]] = {}
        self._missing: Mapping[str, str] = {}
        self._until = float("-inf")
        self._looking: asyncio.Task[Mapping[str, str]] | None = None

    async def missing(self) -> Mapping[str, str]:
        """Give what is missing (`runtime`, `image`, `disk`) and why; nothing if a session could start."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._until:
            return self._missing
        if self._looking is None:
            self._looking = loop.create_task(self._look())
        # Shielded: who asked may go away, and others wait for the same.
        return await asyncio.shield(self._looking)

    async def aclose(self) -> None:
        """End what still goes on. Idempotent."""
        tasks: list[asyncio.Task[object]] = [*self._checks.values()]
        if self._looking is not None:
            tasks.append(self._looking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> Mapping[str, str]:
        try:
            for name, check in (("runtime", self._sandbox), ("disk", self._disk)):
                if name not in self._checks:  # one that hangs is not begun again
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
            self._looking = None

    async def _sandbox(self) -> tuple[str, str] | None:
        """Look whether the runtime answers and has the image."""
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
            return "disk", f"no file can be made at {self._data}: its file system has no inodes left"
        return None
