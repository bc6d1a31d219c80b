"""The server: its routes, and the start and orderly stop of everything below them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from kernelbridge import __version__
from kernelbridge.audit.audit import Audit, By
from kernelbridge.disk.limits import DiskLimits
from kernelbridge.egress.policy import Resolve
from kernelbridge.errors import LimitExceeded
from kernelbridge.identity.principal import Principal
from kernelbridge.identity.sources import Mistake, likely_mistake, open_source
from kernelbridge.metrics import Metrics, Snapshot
from kernelbridge.protocol import json_schema
from kernelbridge.rates import Paces, Rates
from kernelbridge.runtimes.contract import Runtime, RuntimeInfo
from kernelbridge.server import listening, metrics_listener, open_files
from kernelbridge.server.access import handshake_problem, refusal
from kernelbridge.server.administration import Administration
from kernelbridge.server.authentication import FIRST_MESSAGE_SIZE, WEBSOCKET, Authentication, is_websocket
from kernelbridge.server.certificate import Certificate
from kernelbridge.server.files_api import Transfers
from kernelbridge.server.open_egress import opened_egress
from kernelbridge.server.open_runtime import open_runtime
from kernelbridge.server.page import Page
from kernelbridge.server.previous_clients import PreviousClients
from kernelbridge.server.principal import ADMISSION, Unproven, login_of
from kernelbridge.server.readiness import Readiness
from kernelbridge.server.refusals import note_refusal
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.connection import Connection
from kernelbridge.server.websocket.heartbeat import Heartbeat, Patience
from kernelbridge.server.websocket.socket import Socket, refuse_connection
from kernelbridge.server.websocket.tcp import TcpConnection
from kernelbridge.settings.quantities import format_duration
from kernelbridge.settings.settings import Settings, is_loopback
from kernelbridge.workspace.adoption.record import count_previous_sandboxes
from kernelbridge.workspace.egress import Egress
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.service import stored_files
from kernelbridge.workspace.files.store import FileLimits
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.retention import Retention, forget_usage
from kernelbridge.workspace.states import WorkspaceState

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT = 3.0
"""Seconds that clients have to answer the close when the server stops."""
FLUSH = 30.0
"""Seconds that a client has to read the rest of what was sent, after its connection was closed."""
FILE_THREADS = 4
"""Threads for blocking work on workspace files."""

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
"""Blocks of at least this many bytes are mapped: they are returned when they are freed, and grow without a copy."""

_UPGRADE = MappingProxyType({"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})


@dataclass(frozen=True, slots=True)
class StartReport:
    """What a server that has started shows: each text is one line for a person."""

    url: str
    """Where clients connect, with the actual port: `ws://127.0.0.1:8001/ws`, or `ws+unix://PATH:/ws`."""
    runtime: RuntimeInfo
    data_dir: Path
    image: str | None = None
    """Image of the workspaces; None if the runtime has none."""
    network: str | None = None
    """What programs in the sandboxes reach; None if they have the network of the machine."""
    auth: str = "none"
    """How clients prove who they are: `none`, `token`, `proxy` or `jwt`."""
    metrics: str | None = None
    """Where Prometheus finds the metrics, with the actual port; None if nowhere."""
    keeps: bool = False
    """Whether its sandboxes are left to the next server when it stops."""
    login_warning: str | None = None
    """What is probably wrong with how clients log in."""


@dataclass(eq=False)
class _Ending:
    """How sessions end when the server stops."""

    keep: bool
    """Whether they are left to the next server."""
    end_now: asyncio.Event
    """Set when running cells and commands are to be ended at once."""

    async def end_sessions(self, registry: Registry) -> None:
        await (registry.leave() if self.keep else registry.aclose())

    async def end_runtime(self, runtime: Runtime) -> None:
        await runtime.aclose(keep=self.keep)


@dataclass(eq=False)
class Server:
    """The handlers of the routes, and what they need."""

    settings: Settings
    registry: Registry
    transfers: Transfers
    warning: str | None
    patience: Patience
    ending: _Ending
    readiness: Readiness
    authentication: Authentication
    administration: Administration
    paces: Paces
    connections: dict[Connection, asyncio.Transport] = field(default_factory=dict)
    users: Counter[Principal] = field(default_factory=Counter)
    """How many connections each principal has; without those that have none."""
    unsent: dict[asyncio.Transport, asyncio.TimerHandle] = field(default_factory=dict)
    """Connections that have ended, but whose clients have not read everything yet."""

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """`GET /ws`: serve one client."""
        if not is_websocket(request):
            raise web.HTTPUpgradeRequired(
                text="This is a WebSocket endpoint: connect with ws://, not http://.\n", headers=_UPGRADE
            )
        if (problem := handshake_problem(request.method, request.version, request.headers)) is not None:
            self._refused(request, "bad_request", problem.reason)
            return web.Response(status=problem.status, text=f"{problem.reason}\n", headers=_UPGRADE)
        streams, strict = _flag(request, "stream"), _flag(request, "strict")
        unproven = isinstance(request[ADMISSION], Unproven)
        ws = Socket(
            request,
            max_message=self.settings.max_message,
            message_timeout=self.settings.message_timeout,
            before_login=FIRST_MESSAGE_SIZE if unproven else None,
        )
        if unproven:
            login = await self.authentication.first_message(ws, request)
            if login is None:
                return ws
        else:
            login = login_of(request)
            await ws.prepare(request)
        user = login.identity.principal
        transport = request.transport
        if transport is None:
            return ws  # the client is gone already
        limit = self.settings.max_connections_per_user
        if self.users[user] >= limit:
            log.warning("connection_refused", user_id=user.subject, limit=limit)
            self.registry.metrics.refused(LimitExceeded.code)
            by, reason = By(user, address=request.remote), f"the user has {limit} connections already"
            self.registry.audit.refused(by, what="GET /ws", code=LimitExceeded.code, reason=reason)
            await refuse_connection(ws, limit)
            return ws
        ws.holding.user = user
        connection = Connection(
            ws,
            login=login,
            streams=streams,
            strict=strict,
            registry=self.registry,
            warning=self.warning,
            pace=self.paces.connection(user),
            holding=ws.holding,
            address=request.remote,
        )
        self.connections[connection] = transport
        self.users[user] += 1
        try:
            heartbeat = Heartbeat(transport, self.patience, ping=ws.ping, heard_ago=ws.heard_ago)
            with heartbeat, self.authentication.watched(login, ws.end_login):
                await connection.run()
        finally:
            del self.connections[connection]
            self.users -= Counter((user,))
            if transport.get_write_buffer_size():
                loop = asyncio.get_running_loop()
                self.unsent[transport] = loop.call_later(FLUSH, self._abort, transport)
        return ws

    async def healthz(self, _request: web.Request) -> web.StreamResponse:
        """`GET /healthz`: answer that the process is alive."""
        return web.json_response({"status": "ok", "version": __version__})

    async def readyz(self, _request: web.Request) -> web.StreamResponse:
        """`GET /readyz`: answer whether a new session could start now, and what is missing."""
        missing = await self.readiness.missing()
        if missing:
            return web.json_response({"status": "not ready", "missing": missing}, status=503)
        return web.json_response({"status": "ready", "version": __version__})

    async def schema(self, _request: web.Request) -> web.StreamResponse:
        """`GET /api/schema`: send the JSON Schema of all messages."""
        return web.json_response(json_schema())

    async def finish(self) -> None:
        """Accept no new work, and wait for what runs. Clients can still interrupt it.

        Call it before the runner's own clean-up, after which nothing is read any more.
        """
        waits = [
            asyncio.ensure_future(self.registry.finish(self.settings.stop_timeout, keep=self.ending.keep)),
            asyncio.ensure_future(self.ending.end_now.wait()),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def _stop(self, _app: web.Application) -> None:
        """Answer what runs, then close all connections with 1001. Does not wait for clients that do not read."""
        self.authentication.end_waiting()
        await self.ending.end_sessions(self.registry)
        loop = asyncio.get_running_loop()
        closing = {
            loop.create_task(connection.close(CLOSE_TIMEOUT)): transport
            for connection, transport in self.connections.items()
        }
        if closing:
            _, stalled = await asyncio.wait(closing, timeout=CLOSE_TIMEOUT)
            for task in stalled:
                _drop(closing[task])
            await asyncio.gather(*closing, return_exceptions=True)

    def drop_unread(self) -> None:
        """Drop connections whose clients have not read everything."""
        for transport, timer in list(self.unsent.items()):
            timer.cancel()
            self._abort(transport)

    def _abort(self, transport: asyncio.Transport) -> None:
        del self.unsent[transport]
        _drop(transport)

    def _refusal(self, hosts: Sequence[str], origins: Sequence[str]) -> str | None:
        beyond = self.settings.listen is None and not is_loopback(self.settings.host)
        by_proxy = self.settings.auth == "proxy"
        return refusal(hosts, origins, self.settings.allow_origin, addresses=beyond, local_pages=not by_proxy)

    def app(self) -> web.Application:
        """Make the aiohttp application."""
        app = web.Application(middlewares=[self._guard])
        # It runs when no new connection is accepted any more, and before aiohttp waits for the handlers.
        app.on_shutdown.append(self._stop)
        app.router.add_get(WEBSOCKET, self.websocket, allow_head=False)
        app.router.add_get("/healthz", self.healthz)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/api/schema", self.schema)
        self.transfers.add_to(app)
        self.administration.add_to(app)
        Page().add_to(app)
        return app

    def _refused(self, request: web.Request, code: str, reason: str) -> None:
        note_refusal(request, self.registry.metrics, self.registry.audit, code=code, reason=reason)

    def look(self, buffers: Buffers) -> Snapshot:
        """Return what there is now, for the metrics."""
        found = Counter(workspace.state for workspace in self.registry.everything())
        return Snapshot(
            sessions={state.value: found[state] for state in WorkspaceState if state is not WorkspaceState.CLOSED},
            starts_waiting=self.registry.starts_waiting,
            connections=len(self.connections),
            buffered=buffers.held,
            buffered_limit=buffers.limit,
        )

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts, origins = request.headers.getall("Host", []), request.headers.getall("Origin", [])
        if (reason := self._refusal(hosts, origins)) is not None:
            self._refused(request, "forbidden", reason)
            return web.json_response({"error": "forbidden", "reason": reason}, status=403)
        with TcpConnection.of(request).handling(request):
            return await self.authentication.serve(request, handler)


def _drop(transport: asyncio.Transport) -> None:
    if transport.get_write_buffer_size():  # a connection that was lost meanwhile must not be aborted
        transport.abort()


def _flag(request: web.Request, name: str) -> bool:
    value = request.query.get(name, "false")
    if value not in {"true", "false"}:
        raise web.HTTPBadRequest(text=f"{name} must be true or false.\n")
    return value == "true"


def _certificate(settings: Settings) -> Certificate | None:
    return None if settings.tls_cert is None else Certificate(settings.tls_cert, settings.tls_key)


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    on_progress: Callable[[str], None],
    patience: Patience = Patience(),  # noqa: B008 - it is frozen
    end_now: asyncio.Event | None = None,
    resolve: Resolve | None = None,
) -> AsyncIterator[StartReport]:
    """Serve while the context is open. Raises `KernelBridgeError` if the server cannot start.

    `resolve` resolves the names that programs in sandboxes ask for; as this machine does, if None.
    On exit, what runs has `stop_timeout` to end, unless `end_now` is set. With `keep_sandboxes`, sandboxes are left to
    the next server; otherwise nothing is left behind.
    """
    async with AsyncExitStack() as stack:
        source = await asyncio.to_thread(open_source, settings)
        certificate = await asyncio.to_thread(_certificate, settings)
        data = DataDirectory.open(settings.data_dir)
        stack.callback(data.close)
        await asyncio.to_thread(data.limit_disk, DiskLimits(settings.disk, settings.disk_files))
        executor = stack.enter_context(ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files"))
        runtime = await open_runtime(
            settings,
            instance=data.instance,
            directories=data.directories,
            on_progress=on_progress,
            left_to_docker=lambda: count_previous_sandboxes(data.state, "docker"),
        )
        # A start that fails must not cost a session. So what may fail comes before sessions are adopted: an adoption
        # reports what happened to them only once, and no client is connected yet to see it.
        ending = _Ending(runtime.info.adopts, end_now or asyncio.Event())
        stack.push_async_callback(ending.end_runtime, runtime)
        await runtime.prepare()
        metrics = Metrics(runtime.info.name)
        audit = await Audit.open(settings.audit_log, with_code=settings.audit_code, on_lost=metrics.audit_lost)
        stack.push_async_callback(audit.aclose)
        retention = _retention(settings, data, executor)
        if retention is not None:
            stack.push_async_callback(retention.aclose)
        egress = None
        if runtime.info.relays:
            egress = await stack.enter_async_context(opened_egress(settings, data.root, metrics, audit, resolve))
        registry = Registry(
            runtime=runtime,
            data=data,
            settings=settings,
            executor=executor,
            egress=egress,
            on_use=None if retention is None else retention.use,
            metrics=metrics,
            audit=audit,
        )
        stack.push_async_callback(ending.end_sessions, registry)
        if settings.uid_range is not None and runtime.info.own_uids:
            data.assign_uids(*settings.uid_range, registry.with_sandboxes)
        paces = Paces(Rates(settings.request_rate, settings.byte_rate), time.monotonic)
        transfers = Transfers(
            functools.partial(
                stored_files,
                data=data,
                runtime=runtime,
                executor=executor,
                limits=FileLimits(settings.max_message, settings.max_upload),
            ),
            registry.using,
            audit,
            metrics,
            paces,
        )
        readiness = Readiness(runtime, data.root, executor)
        stack.push_async_callback(readiness.aclose)
        server = Server(
            settings,
            registry,
            transfers,
            runtime.info.warning,
            patience,
            ending,
            readiness,
            authentication := Authentication(settings, source, audit, metrics),
            Administration(registry, settings.admin),
            paces,
        )
        runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=5.0)
        await runner.setup()
        stack.callback(server.drop_unread)
        stack.push_async_callback(runner.cleanup)
        sockets = await _bind(settings, stack)
        buffers = Buffers(settings.max_buffered)
        metrics.watch(functools.partial(server.look, buffers))
        scraped = await stack.enter_async_context(
            metrics_listener.listening(settings.metrics_listen, metrics, settings.allow_origin)
        )
        if egress is not None:
            egress.listens_at(_own_ports(sockets, scraped.port))
        await registry.adopt(PreviousClients(registry))
        await stack.enter_async_context(authentication.sweeping())
        stack.push_async_callback(server.finish)
        await stack.enter_async_context(listening.accepting(runner, sockets, buffers, certificate))
        if retention is not None:
            retention.start(registry)
        ending.keep = settings.keep_sandboxes and runtime.info.adopts
        yield replace(
            _report(settings, runtime, sockets[0], egress, likely_mistake(settings, source), keeps=ending.keep),
            metrics=scraped.where,
        )


async def _bind(settings: Settings, stack: AsyncExitStack) -> list[socket.socket]:
    if settings.listen is None:
        return [stack.enter_context(sock) for sock in await listening.bind(settings.host, settings.port)]
    sock = stack.enter_context(listening.bind_unix(settings.listen))
    stack.callback(settings.listen.unlink, missing_ok=True)
    return [sock]


def _own_ports(sockets: Sequence[socket.socket], metrics: int | None) -> set[int]:
    clients = {sock.getsockname()[1] for sock in sockets if sock.family != socket.AF_UNIX}
    return clients if metrics is None else {*clients, metrics}


async def serve(
    settings: Settings,
    *,
    on_progress: Callable[[str], None],
    on_started: Callable[[StartReport], None],
    on_stopping: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends what runs at once. Raises `KernelBridgeError`.

    `on_progress` gets lines about the start, and `on_stopping` a line about how the server stops.
    """
    _return_large_blocks()
    open_files.raise_limit()
    stop, end_now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    async with running(settings, on_progress=on_progress, end_now=end_now) as report:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, lambda: end_now.set() if stop.is_set() else stop.set())
        on_started(report)
        # What exists now stays, so garbage collections need not examine it again.
        gc.collect()
        gc.freeze()
        await stop.wait()
        on_stopping(_stopping(settings, keeps=report.keeps))


def _stopping(settings: Settings, *, keeps: bool) -> str:
    what = "cells are left to the next server; what cannot be left" if keeps else "what still runs"
    if not settings.stop_timeout:
        return f"Stopping: {what} is ended now."
    return (
        f"Stopping: {what} has {format_duration(settings.stop_timeout)} to end (--stop-timeout);"
        " a second Ctrl-C or SIGTERM ends it at once."
    )


def _return_large_blocks() -> None:
    """Make glibc return large blocks as soon as they are freed. Does nothing with other C libraries.

    Once it has freed large blocks, it keeps free blocks of up to 32 MiB between others that are in use: the memory for
    the messages of a few clients would stay with the server for ever.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _retention(settings: Settings, data: DataDirectory, executor: ThreadPoolExecutor) -> Retention | None:
    if settings.retain is None:
        forget_usage(data)
        return None
    return Retention(data, executor, retain=settings.retain)


def _report(
    settings: Settings,
    runtime: Runtime,
    sock: socket.socket,
    egress: Egress | None,
    mistake: Mistake | None,
    *,
    keeps: bool,
) -> StartReport:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "ws" if settings.tls_cert is None else "wss"
    port = None if settings.listen else sock.getsockname()[1]
    return StartReport(
        url=f"{scheme}+unix://{settings.listen}:/ws" if settings.listen else f"{scheme}://{host}:{port}/ws",
        auth=settings.auth,
        runtime=runtime.info,
        data_dir=settings.data_dir,
        image=settings.image if runtime.info.images else None,
        network=None if egress is None else str(egress.policies),
        keeps=keeps,
        login_warning=None if mistake is None else f"{mistake.found}: {mistake.fix}",
    )
