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
"""Seconds until an engine that did not answer is asked again about a sandbox that is to be taken over."""


async def take_over(sandbox: Sandbox, spare: Collection[str], *, wanted: Callable[[], bool]) -> None:
    """Make a sandbox of an earlier server this one's: nothing but the processes with the handles `spare` goes on in it.

    An engine that does not answer is asked again while that is `wanted`. Raises `SandboxError`.
    """
    tried = False
    while True:
        try:
            # A pause may have been under way when that server ended.
            await sandbox.resume()
            problem = await _end_others(sandbox, spare)
            # An engine that was killed meanwhile has passed nothing on, and did not say so.
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
            # No reason to lose the interpreter.
            log.warning("shells_not_ended", sandbox=sandbox.id, error=str(problem))
            return
        tried = True  # once more: perhaps it was the engine that stood still, and goes on again


async def _end_others(sandbox: Sandbox, spare: Collection[str]) -> SandboxError | None:
    """End all else; give what kept it from that. Raises `RuntimeUnavailable`."""
    try:
        await sandbox.end_others(spare=spare)
    except RuntimeUnavailable:
        raise
    except SandboxError as exc:
        return exc
    return None
