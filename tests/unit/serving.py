"""A real server in a thread, for what blocks the thread that calls it: commands, the synchronous client.

Its sandboxes are plain processes of this host.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

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

    # Its log would be in the output of commands.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        thread = threading.Thread(target=runner.run, args=(serve(),))
        thread.start()
        started.wait()
        try:
            yield urls[0]
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()
            structlog.reset_defaults()


@contextmanager
def answers_in_thread(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Iterator[str]:
    """Answer all HTTP requests with a handler; yield the URL."""
    loop, over = asyncio.new_event_loop(), asyncio.Event()
    started = threading.Event()
    addresses: list[Any] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        addresses.extend(runner.addresses)
        started.set()
        await over.wait()
        await runner.cleanup()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        thread = threading.Thread(target=runner.run, args=(serve(),))
        thread.start()
        started.wait()
        try:
            yield f"http://127.0.0.1:{addresses[0][1]}"
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()
