"""The address of a server: bound before sessions are adopted, opened when the server is ready.

A start that fails must not have adopted a session: what an adoption reports is reported once, and no client would see
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from errno import EADDRNOTAVAIL
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import ConfigError
from kernelbridge.server import open_files
from kernelbridge.server.certificate import Certificate
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.stranger_log import StrangerLog
from kernelbridge.server.websocket.tcp import OPTIONS, Idle, TcpConnection, UnixConnection

log = structlog.get_logger(__name__)

_BACKLOG = 128
"""Connections that wait to be accepted."""

IDLE = 1024
"""Connections that may have no request, if that is not more than a quarter of the files that the server may open. TLS
handshakes are among them."""
HANDSHAKE = 10.0
"""Seconds that a client may take for the handshake of TLS."""
_ACCEPT_AGAIN = 1.0
"""Seconds until connections are accepted again after it failed."""
_SOCKET_MODE = 0o660


async def bind(host: str, port: int, setting: str = "--port") -> list[socket.socket]:
    """Return sockets bound to an address, which do not accept connections yet. The caller closes them.

    `setting` is where the address is set. Raises `ConfigError`.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as undo:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            sockets = [sock for info in dict.fromkeys(found) if (sock := _bound(*info, undo=undo)) is not None]
        except OSError as exc:
            raise _refused(host, port, exc, setting) from exc
        if not sockets:
            raise _refused(host, port, OSError(EADDRNOTAVAIL, "this machine has no such address"), setting)
        undo.pop_all()
    return sockets


def bind_unix(path: Path, setting: str = "--listen") -> socket.socket:
    """Return a socket bound to a path, which does not accept connections yet. The caller closes it, and removes it.

    A socket that a server left there which does not run any more is replaced. `setting` is where the path is set.
    Raises `ConfigError`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left(path)
        # Until its mode is set, nobody else may connect.
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        path.chmod(_SOCKET_MODE)
    except OSError as exc:
        sock.close()
        raise _no_unix(path, exc, setting) from exc
    return sock


@contextlib.asynccontextmanager
async def accepting(
    runner: web.AppRunner,
    sockets: Sequence[socket.socket],
    buffers: Buffers,
    certificate: Certificate | None = None,
    *,
    most_idle: int | None = None,
    setting: str | None = None,
) -> AsyncIterator[None]:
    """Accept connections on bound sockets while the context is open, with TLS if there is a certificate.

    `most_idle` is how many may have no request; by default as many as the files that the server may open allow.
    `setting` is where the address is set. Raises `ConfigError`.
    """
    if runner.server is None:
        raise AssertionError("the runner is not set up")
    idle = Idle(min(IDLE, open_files.limit() // 4) if most_idle is None else most_idle)
    made: dict[str, Any] = {"manager": runner.server, "buffers": buffers, "strangers": StrangerLog(), "idle": idle}
    tcp = functools.partial(TcpConnection, **made, **OPTIONS)
    unix = functools.partial(UnixConnection, **made, **OPTIONS)
    async with contextlib.AsyncExitStack() as stack:
        if certificate is not None:
            await stack.enter_async_context(certificate.renewing())
        for sock in sockets:
            is_unix = sock.family == socket.AF_UNIX
            connection = unix if is_unix else tcp
            if certificate is None:
                serving = _serving(sock, connection)
            else:
                serving = _Handshakes(sock, connection, certificate).accepting()
            try:
                await stack.enter_async_context(serving)
            except OSError as exc:
                if is_unix:
                    raise _no_unix(sock.getsockname(), exc, setting or "--listen") from exc
                host, port = sock.getsockname()[:2]
                raise _refused(host, port, exc, setting or "--port") from exc
        yield


@contextlib.asynccontextmanager
async def _serving(sock: socket.socket, connection: Callable[[], TcpConnection]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
    server = await create(connection, sock=sock, backlog=_BACKLOG)
    try:
        yield
    finally:
        server.close()


class _Handshakes:
    """Accepts the connections of one socket, and does their TLS handshakes.

    The event loop could do both, but it would have one certificate for ever, and would not count handshakes.
    """

    def __init__(self, sock: socket.socket, connection: Callable[[], TcpConnection], certificate: Certificate) -> None:
        self._sock = sock
        self._connection = connection
        self._certificate = certificate
        self._tasks = TaskSet()

    @contextlib.asynccontextmanager
    async def accepting(self) -> AsyncIterator[None]:
        """Accept while the context is open; then end the handshakes that are not complete. Raises `OSError`."""
        self._sock.listen(_BACKLOG)
        self._sock.setblocking(False)  # noqa: FBT003 - its only argument
        self._tasks.create(self._accept())
        try:
            yield
        finally:
            await self._tasks.aclose()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._sock)
            except ConnectionError:
                continue  # it is gone already
            except OSError as exc:  # most likely no file can be opened now
                log.error("not_accepted", error=str(exc), again_in=_ACCEPT_AGAIN)  # noqa: TRY400
                await asyncio.sleep(_ACCEPT_AGAIN)
            else:
                self._tasks.create(self._shake_hands(client))

    async def _shake_hands(self, client: socket.socket) -> None:
        connection, loop = self._connection(), asyncio.get_running_loop()
        # An error means that the client is silent, speaks no TLS, or refuses the certificate.
        with connection.shaking_hands(), contextlib.suppress(OSError):
            await loop.connect_accepted_socket(
                lambda: connection, client, ssl=self._certificate.context, ssl_handshake_timeout=HANDSHAKE
            )


def _remove_left(path: Path) -> None:
    """Remove a socket that nobody listens on. Raises `OSError` for anything else that is in the way."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(0, "there is a file that is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError(0, "another server listens there")


def _bound(
    family: int, kind: int, protocol: int, _name: str, address: tuple[object, ...], *, undo: contextlib.ExitStack
) -> socket.socket | None:
    """Return a socket bound to an address; None if the machine lacks its family, as IPv6 for `localhost`."""
    try:
        sock = undo.enter_context(socket.socket(family, kind, protocol))
    except OSError:
        return None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind(address)
    except OSError as exc:
        if exc.errno != EADDRNOTAVAIL or family != socket.AF_INET6:
            raise
        return None
    return sock


def _no_unix(path: object, exc: OSError, setting: str) -> ConfigError:
    return ConfigError(f"Cannot listen on unix:{path}", f"{exc.strerror or exc}; choose another path with {setting}")


def _refused(host: str, port: int, exc: OSError, setting: str) -> ConfigError:
    remedy = f"stop what uses the port, or choose another with {setting}"
    if isinstance(exc, PermissionError):
        remedy = f"ports below 1024 need privileges; choose another with {setting}"
    return ConfigError(f"Cannot listen on {host}:{port}", f"{exc.strerror or exc}; {remedy}")
