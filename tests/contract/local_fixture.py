"""A `LocalRuntime` for the contract suite, with an instance of its own."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.local.runtime import LocalRuntime


@asynccontextmanager
async def local_runtime(directories: HostDirectories) -> AsyncIterator[LocalRuntime]:
    runtime = await asyncio.to_thread(LocalRuntime, instance=secrets.token_hex(4), directories=directories)
    try:
        yield runtime
    finally:
        await runtime.aclose()
