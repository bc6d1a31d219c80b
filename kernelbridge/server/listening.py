"""The address of a server: bound before sessions are adopted, opened when the server is ready.

A start that fails must not have adopted a session: what an adoption reports is reported once, and no client would see
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from errno import EADDRNOTAVAIL

from aiohttp import web

from kernelbridge.errors import ConfigError
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.tcp import OPTIONS, TcpConnection

_BACKLOG = 128
"""Connections that wait to be accepted."""


async def bind(host: str, port: int) -> list[socket.socket]:
    """Return sockets bound to an address, which do not accept connections yet. The caller closes them.

    Raises `ConfigError`.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as undo:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            sockets = [sock for info in dict.fromkeys(found) if (sock := _bound(*info, undo=undo)) is not None]
        except OSError as exc:
            raise _refused(host, port, exc) from exc
        if not sockets:
            raise _refused(host, port, OSError(EADDRNOTAVAIL, "this machine has no such address"))
        undo.pop_all()
    return sockets


@contextlib.asynccontextmanager
async def accepting(runner: web.AppRunner, sockets: Sequence[socket.socket], buffers: Buffers) -> AsyncIterator[None]:
    """Accept connections on bound sockets while the context is open. Raises `ConfigError`."""
    manager, loop = runner.server, asyncio.get_running_loop()
    if manager is None:
        raise AssertionError("the runner is not set up")
    with contextlib.ExitStack() as servers:
        for sock in sockets:
            try:
                server = await loop.create_server(
                    lambda: TcpConnection(manager, buffers, **OPTIONS), sock=sock, backlog=_BACKLOG
                )
            except OSError as exc:
                host, port = sock.getsockname()[:2]
                raise _refused(host, port, exc) from exc
            servers.callback(server.close)
        yield


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


def _refused(host: str, port: int, exc: OSError) -> ConfigError:
    remedy = "stop what uses the port, or choose another with --port"
    if isinstance(exc, PermissionError):
        remedy = "ports below 1024 need privileges; choose another with --port"
    return ConfigError(f"Cannot listen on {host}:{port}", f"{exc.strerror or exc}; {remedy}")
