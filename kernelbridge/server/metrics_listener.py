"""`GET /metrics` on an address of its own, and the measurement of the event loop's lag for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from kernelbridge.errors import ConfigError
from kernelbridge.metrics import Metrics
from kernelbridge.server.listening import bind

LOOK = 0.5
"""Seconds between two measurements of the event loop's lag."""
SETTING = "--metrics-listen"
_SOCKET_MODE = 0o660


class Scraped(NamedTuple):
    """Where the metrics are."""

    where: str | None = None
    """For a person; None if nowhere."""
    port: int | None = None


@contextlib.asynccontextmanager
async def listening(address: tuple[str, int] | Path | None, metrics: Metrics) -> AsyncIterator[Scraped]:
    """Answer scrapes while the context is open, if there is an address; yields where. Raises `ConfigError`."""
    if address is None:
        yield Scraped()
        return
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(_app(metrics), access_log=None, shutdown_timeout=1.0)
        if isinstance(address, Path):
            await _set_up(runner, stack)
            await _listen_at(runner, address)
            stack.callback(address.unlink, missing_ok=True)
            scraped = Scraped(f"unix:{address}")
        else:
            host, _ = address
            sockets = [stack.enter_context(sock) for sock in await bind(*address, SETTING)]
            await _set_up(runner, stack)  # after the sockets, which are closed after it
            for sock in sockets:
                await web.SockSite(runner, sock).start()
            port = sockets[0].getsockname()[1]
            where = f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"
            scraped = Scraped(where, port)
        stack.callback(_LagMeter(metrics).stop)
        yield scraped


async def _set_up(runner: web.AppRunner, stack: AsyncExitStack) -> None:
    await runner.setup()
    stack.push_async_callback(runner.cleanup)


async def _listen_at(runner: web.AppRunner, path: Path) -> None:
    try:
        await web.UnixSite(runner, path).start()
        await asyncio.to_thread(path.chmod, _SOCKET_MODE)
    except OSError as exc:
        reason = f"{exc.strerror or exc}; choose another path with {SETTING}"
        raise ConfigError(f"Cannot listen on unix:{path}", reason) from exc


def _app(metrics: Metrics) -> web.Application:
    async def scrape(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/metrics", scrape)
    return app


class _LagMeter:
    """Measures the event loop's lag, until it is stopped."""

    def __init__(self, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._timer = self._again()

    def stop(self) -> None:
        """Measure no more."""
        self._timer.cancel()

    def _again(self) -> asyncio.TimerHandle:
        due = self._loop.time() + LOOK
        return self._loop.call_at(due, self._measure, due)

    def _measure(self, due: float) -> None:
        self._metrics.lagged(max(0.0, self._loop.time() - due))
        self._timer = self._again()
