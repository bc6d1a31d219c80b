"""A `LocalRuntime` for the contract suite, with an instance of its own."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kernelbridge.runtimes.local.runtime import LocalRuntime


@asynccontextmanager
async def local_runtime(state_dir: Path) -> AsyncIterator[LocalRuntime]:
    runtime = await asyncio.to_thread(LocalRuntime, instance=secrets.token_hex(4), state_dir=state_dir)
    try:
        yield runtime
    finally:
        await runtime.aclose()
