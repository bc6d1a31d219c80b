"""A real server in a thread, for what blocks the thread that calls it: commands, the synchronous client.

Its sandboxes are plain processes of this host.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernelbridge.server.app import running
from kernelbridge.settings.settings import resolve


@contextmanager
def server_in_thread(data: Path, **flags: Any) -> Iterator[str]:
    """Run a server; yield its URL."""
    given = {"runtime": "local", "isolation": False, "port": "0", "linger": "0", "stop_timeout": "0", **flags}
    settings = resolve({**given, "data_dir": str(data)}, {})
    urls: list[str] = []
    started, loop, over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        try:
            async with running(settings, on_progress=lambda _line: None) as report:
                urls.append(report.url)
                started.set()
                await over.wait()
        finally:
            started.set()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        thread = threading.Thread(target=runner.run, args=(serve(),))
        thread.start()
        started.wait()
        try:
            yield urls[0]
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()
