"""Taking over a sandbox that an earlier server started."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from kernelbridge.errors import RuntimeUnavailable, SandboxError
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.runtimes.base import Sandbox
from kernelbridge.workspace.shell import script
from kernelbridge.workspace.terminals import shell_rc

log = structlog.get_logger(__name__)

ENGINE_PAUSE = 1.0
"""Seconds until an engine that did not answer is asked again about a sandbox that is to be taken over."""


async def take_over(sandbox: Sandbox, kernel: KernelIdentity | None, *, wanted: Callable[[], bool]) -> None:
    """Make a sandbox of an earlier server this one's: nothing but its kernel goes on in it. Raises `SandboxError`.

    What leads to the terminals of its shells has ended with that server, so they are ended, too. An engine that does
    not answer is asked again while that is `wanted`.
    """
    tried = False
    while True:
        try:
            # A pause may have been under way when that server ended.
            await sandbox.resume()
            problem = await _end_shells(sandbox, kernel)
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


async def _end_shells(sandbox: Sandbox, kernel: KernelIdentity | None) -> SandboxError | None:
    """End all but the kernel; give what kept it from that. Raises `RuntimeUnavailable`."""
    spare = 0 if kernel is None else (await sandbox.rejoin(kernel.process)).pid
    try:
        await sandbox.end_others(spare=spare)
        # And what has left its session, by what it got from there.
        for mark in (script.MARK, shell_rc.MARK):
            await sandbox.sweep(f"{mark}=", spare=spare)
    except RuntimeUnavailable:
        raise
    except SandboxError as exc:
        return exc
    return None
