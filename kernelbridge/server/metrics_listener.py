"""`GET /metrics` on an address of its own, and the measurement of the event loop's lag for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client.exposition import choose_encoder

from kernelbridge.metrics import Metrics
from kernelbridge.server.access import refusal
from kernelbridge.server.listening import accepting, bind, bind_unix
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.tcp import TcpConnection
from kernelbridge.settings.settings import is_loopback

CONNECTIONS = 32
"""Connections that there may be; one more closes the one that has asked for nothing for longest."""
BUFFERED = 4 << 20
"""Bytes of requests that are held for all of them."""
LOOK = 0.5
"""Seconds between two measurements of the event loop's lag."""
SETTING = "--metrics-listen"


class Scraped(NamedTuple):
    """Where the metrics are."""

    where: str | None = None
    """For a person; None if nowhere."""
    port: int | None = None


@contextlib.asynccontextmanager
async def listening(
    address: tuple[str, int] | Path | None, metrics: Metrics, allowed: Collection[str] = ()
) -> AsyncIterator[Scraped]:
    """Answer scrapes while the context is open, if there is an address; yields where. Raises `ConfigError`.

    `allowed`: origins by whose names it may be asked although it listens on loopback.
    """
    if address is None:
        yield Scraped()
        return
    async with AsyncExitStack() as stack:
        if isinstance(address, Path):
            sockets = [stack.enter_context(bind_unix(address, SETTING))]
            stack.callback(address.unlink, missing_ok=True)
            scraped = Scraped(f"unix:{address}")
        else:
            host, _ = address
            sockets = [stack.enter_context(sock) for sock in await bind(*address, SETTING)]
            port = sockets[0].getsockname()[1]
            where = f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"
            scraped = Scraped(where, port)
        local = not isinstance(address, Path) and is_loopback(address[0])
        runner = web.AppRunner(_app(metrics, allowed if local else None), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        bounded = accepting(runner, sockets, Buffers(BUFFERED), most_idle=CONNECTIONS, setting=SETTING)
        await stack.enter_async_context(bounded)
        stack.callback(_LagMeter(metrics).stop)
        yield scraped


def _app(metrics: Metrics, allowed: Collection[str] | None) -> web.Application:
    async def scrape(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})

    @web.middleware
    async def handling(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts, origins = request.headers.getall("Host", []), request.headers.getall("Origin", [])
        # A page that a browser on this machine shows reaches loopback under any name that resolves to it.
        if allowed is not None and (reason := refusal(hosts, origins, allowed)) is not None:
            return web.Response(status=403, text=reason + "\n")
        # It is short: a connection counts as one without a request also while its client does not read the answer.
        with TcpConnection.of(request).handling(request):
            return await handler(request)

    app = web.Application(middlewares=[handling])
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
