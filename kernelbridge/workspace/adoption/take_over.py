"""Taking over a sandbox that an earlier server started."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection

import structlog

from kernelbridge.errors import RuntimeUnavailable, SandboxError
from kernelbridge.runtimes.contract import Sandbox

log = structlog.get_logger(__name__)

ENGINE_PAUSE = 1.0
"""Seconds between two tries to take over a sandbox from an engine that does not answer."""


async def take_over(sandbox: Sandbox, spare: Collection[str], *, wanted: Callable[[], bool]) -> None:
    """Resume a sandbox of an earlier server, and end all processes in it except those with the handles `spare`.

    If the engine does not answer, try again while `wanted` returns True. Raises `SandboxError`.
    """
    tried = False
    while True:
        try:
            # A pause may have been under way when the earlier server ended.
            await sandbox.resume()
            problem = await _end_others(sandbox, spare)
            # If the engine was killed meanwhile, the first resume had no effect, and no error.
            await sandbox.resume()
        except RuntimeUnavailable as exc:
            if not wanted():
                raise
            log.warning("sandbox_not_taken_over_yet", sandbox=sandbox.id, error=str(exc))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sandbox.wait(), ENGINE_PAUSE)
            continue
        if problem is None:
            return
        if tried:
            # The sandbox is taken over all the same: its interpreter is worth more.
            log.warning("shells_not_ended", sandbox=sandbox.id, error=str(problem))
            return
        tried = True  # the cause may have been an engine that was stopped, and runs again


async def _end_others(sandbox: Sandbox, spare: Collection[str]) -> SandboxError | None:
    """End the other processes; return the error if that fails. Raises `RuntimeUnavailable`."""
    try:
        await sandbox.end_others(spare=spare)
    except RuntimeUnavailable:
        raise
    except SandboxError as exc:
        return exc
    return None
