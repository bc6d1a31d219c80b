"""When an interrupt can do what it is meant for: once the user's code runs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from kernelbridge.jupyter.execution import Execution

GRACE = 1.0
"""Seconds for a cell to begin; a kernel whose cell keeps the interpreter to itself never says so."""
PREPARATION = 0.1
"""Seconds from a kernel's word that it begins a cell to the cell's first line, in one without our hooks."""


async def until_code_runs(execution: Execution, died: asyncio.Future[Any]) -> None:
    """Wait until an interrupt will reach the user's code, or the kernel has died.

    A kernel that has not taken the cell from its queue ignores interrupts, and then runs it; IPython's own preparations
    swallow them, or are broken off (our hooks keep an interrupt until they are over).
    """
    if execution.begun is None:
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        execution.on_begun = lambda: begun.set_result(None)
        await asyncio.wait({begun, died}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
    if execution.begun is not None and (left := execution.begun + PREPARATION - time.monotonic()) > 0:
        await asyncio.wait({died}, timeout=left)
