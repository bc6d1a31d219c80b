"""The address of a server: bound before sessions are adopted, opened when the server is ready.

A start that fails must not have adopted a session: what an adoption reports is reported once, and no client would see
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Sequence
from errno import EADDRNOTAVAIL
from pathlib import Path
from typing import Any

from aiohttp import web

from kernelbridge.errors import ConfigError
from kernelbridge.server import open_files
from kernelbridge.server.websocket.buffers import Buffers
from kernelbridge.server.websocket.stranger_log import StrangerLog
from kernelbridge.server.websocket.tcp import OPTIONS, Idle, TcpConnection, UnixConnection

_BACKLOG = 128
"""Connections that wait to be accepted."""

IDLE = 1024
"""Connections that may have no request, if that is not more than a quarter of the files that the server may open."""
_HANDSHAKE = 10.0
"""Seconds that a client may take for the handshake of TLS."""
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


def bind_unix(path: Path) -> socket.socket:
    """Return a socket bound to a path, which does not accept connections yet. The caller closes it, and removes it.

    A socket that a server left there which does not run any more is replaced. Raises `ConfigError`.
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
        raise _no_unix(path, exc) from exc
    return sock


def tls(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Return the TLS context for a certificate; blocking. Raises `ConfigError`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A password would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"--tls-cert: {str(certificate)!r} cannot be used",
            f"{getattr(exc, 'reason', None) or getattr(exc, 'strerror', None) or exc}; expected a certificate in PEM "
            "with its chain, and its private key without a password in the same file or in --tls-key",
        ) from exc
    return context


@contextlib.asynccontextmanager
async def accepting(
    runner: web.AppRunner, sockets: Sequence[socket.socket], buffers: Buffers, context: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Accept connections on bound sockets while the context is open. Raises `ConfigError`."""
    manager, loop = runner.server, asyncio.get_running_loop()
    if manager is None:
        raise AssertionError("the runner is not set up")
    idle = Idle(min(IDLE, open_files.limit() // 4))
    options: dict[str, Any] = {
        "backlog": _BACKLOG,
        "ssl": context,
        "ssl_handshake_timeout": None if context is None else _HANDSHAKE,
    }
    strangers = StrangerLog()
    with contextlib.ExitStack() as servers:
        for sock in sockets:
            try:
                if sock.family == socket.AF_UNIX:
                    server = await loop.create_unix_server(
                        lambda: UnixConnection(manager, buffers, strangers, idle, **OPTIONS), sock=sock, **options
                    )
                else:
                    server = await loop.create_server(
                        lambda: TcpConnection(manager, buffers, strangers, idle, **OPTIONS), sock=sock, **options
                    )
            except OSError as exc:
                if sock.family == socket.AF_UNIX:
                    raise _no_unix(sock.getsockname(), exc) from exc
                host, port = sock.getsockname()[:2]
                raise _refused(host, port, exc) from exc
            servers.callback(server.close)
        yield


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


def _no_unix(path: object, exc: OSError) -> ConfigError:
    return ConfigError(f"Cannot listen on unix:{path}", f"{exc.strerror or exc}; choose another path with --listen")


def _refused(host: str, port: int, exc: OSError, setting: str = "--port") -> ConfigError:
    remedy = f"stop what uses the port, or choose another with {setting}"
    if isinstance(exc, PermissionError):
        remedy = f"ports below 1024 need privileges; choose another with {setting}"
    return ConfigError(f"Cannot listen on {host}:{port}", f"{exc.strerror or exc}; {remedy}")
