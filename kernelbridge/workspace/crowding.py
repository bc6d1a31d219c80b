"""Tells that a session has no room for more processes, while something in it runs that may wait for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.base import Sandbox

_LOOK_SECONDS = 2.0


async def watch_crowding(
    sandbox: Sandbox, busy: Callable[[], bool], tell: Callable[[], None], found: Callable[[], None]
) -> None:
    """Call `tell` each time that a sandbox has become crowded while `busy`, and `found` as long as it is.

    Returns when it has ended.
    """
    ended = asyncio.ensure_future(sandbox.wait())
    told = False
    try:
        while True:
            # What no process can be started for says so to nobody; the kernel counts it, and has to be asked.
            await asyncio.wait({ended}, timeout=_LOOK_SECONDS)
            if ended.done():
                return
            if not busy():
                continue
            try:
                crowded = await sandbox.crowded() is True
            except SandboxError:
                continue
            if crowded and not told:
                tell()
            told = crowded
            if crowded:
                found()
    finally:
        ended.cancel()
