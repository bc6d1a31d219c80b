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


class Readiness:
    """Checks what a new session needs: runtime, image and disk. Requests share a check that is under way."""

    def __init__(self, runtime: Runtime, data: Path, executor: Executor) -> None:
        self._runtime = runtime
        self._data = data
        self._executor = executor
        self._checks: dict[str, asyncio.Task[tuple[str, str] | None]] = {}

    async def missing(self) -> Mapping[str, str]:
        """Return what is missing (`runtime`, `image`, `disk`) and why; empty if a session could start.

        Cancellation does not end the checks, because other requests wait for them.
        """
        for name, check in (("runtime", self._sandbox), ("disk", self._disk)):
            if name not in self._checks:  # a check that hangs is not started again
                self._checks[name] = asyncio.get_running_loop().create_task(check())
        checks = dict(self._checks)
        await asyncio.wait(checks.values(), timeout=PATIENCE)
        missing: dict[str, str] = {}
        for name, task in checks.items():
            if not task.done():
                missing[name] = f"no answer within {PATIENCE:g} s"
                continue
            if self._checks.get(name) is task:
                del self._checks[name]
            if (found := task.result()) is not None:
                missing.update([found])
        return missing

    async def aclose(self) -> None:
        """Cancel the checks. Idempotent."""
        for task in self._checks.values():
            task.cancel()
        await asyncio.gather(*self._checks.values(), return_exceptions=True)

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
            return "disk", f"{self._data} is on a file system mounted read-only; mount it writable"
        if free < EXHAUSTED:
            return "disk", f"{human_size(free)} free at {self._data}; free some space"
        if found.f_files and not found.f_favail:
            return "disk", f"no file can be created at {self._data}: its file system has no free inodes"
        return None
