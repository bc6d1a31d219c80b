"""Where an agent's socket is, and how to connect to it safely.

The socket has a directory of its own in the sandbox's shared directory. It is open to the sandbox's user only while the
agent binds, before any program of the user runs. Then the socket is opened with `O_PATH | O_NOFOLLOW`, checked to be a
socket, and connected through `/proc/self/fd`. Where the bridge is another user, the closed directory also keeps
programs in the sandbox from connecting; the agent refuses them in any case.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

from kernelbridge.errors import SandboxError
from kernelbridge.trees import remove_tree

NAME = "agent"
"""The directory's name in the sandbox's shared directory."""
_SOCKET = "socket"
_OPEN, _CLOSED = 0o777, 0o700
_POLL_SECONDS = 0.005
_BUSY_SECONDS = 0.02
CONNECT_SECONDS = 5.0
"""How long an earlier server's agent may take to accept a connection: programs of its user can keep it from that."""


class AgentDirectory:
    """The directory of one sandbox's agent; `shared` is the host's path of the sandbox's shared directory.

    Call `prepare` before the sandbox is started and then `connect`; or `reopen`, if an earlier server started it.
    """

    def __init__(self, shared: Path) -> None:
        self._path = shared / NAME
        self._fd = -1

    def prepare(self) -> None:
        """Make the directory, empty and open to the sandbox's user; raises OSError. Blocking."""
        remove_tree(self._path)
        self._path.mkdir(mode=0o700)
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        # For everyone, and not by chown: with user namespaces the sandbox's uid is not the host's.
        os.fchmod(self._fd, _OPEN)

    async def connect(self, gone: asyncio.Future[Any] | None = None) -> socket.socket:
        """Wait for the agent to bind, close the directory to the sandbox's user, and connect.

        Returns a connected socket, which the caller closes. Raises `SandboxError` if `gone` is done first, or if
        something else is in the place of the socket. Cancellation leaves nothing open.
        """
        while True:
            if gone is not None and gone.done():
                raise SandboxError("The sandbox could not be started", "it ended before its agent could be reached")
            if self._bound():
                break
            await asyncio.sleep(_POLL_SECONDS)
        os.fchmod(self._fd, _CLOSED)
        return await self._connect()

    async def reopen(self, pid: int | None = None) -> socket.socket:
        """Connect to the agent of a sandbox that an earlier server started.

        Raises `SandboxError`, also if another process than `pid` listens, or none accepts in time.
        """
        self.close()
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            raise SandboxError("The sandbox cannot be reached", f"its agent's directory: {exc.strerror}") from exc
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                control = await self._connect()
        except TimeoutError as exc:
            raise SandboxError("The sandbox cannot be reached", "its agent accepts no connection") from exc
        peer, _, _ = struct.unpack("3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if pid is not None and peer != pid:
            control.close()
            raise SandboxError("The sandbox cannot be reached", "another process is in the place of its agent")
        return control

    def close(self) -> None:
        """Close the directory's descriptor; the directory stays. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _bound(self) -> bool:
        try:
            os.stat(_SOCKET, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    async def _connect(self) -> socket.socket:
        try:
            held = os.open(_SOCKET, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as exc:
            raise SandboxError("The sandbox cannot be reached", f"its agent's socket: {exc.strerror}") from exc
        try:
            if not stat.S_ISSOCK(os.fstat(held).st_mode):
                raise SandboxError("The sandbox cannot be reached", "something else is in the place of its socket")
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.settimeout(0)
                while True:
                    try:
                        connection.connect(f"/proc/self/fd/{held}")
                    except BlockingIOError:  # its queue of connections is full: programs of the same user can fill it
                        await asyncio.sleep(_BUSY_SECONDS)
                    else:
                        return connection
            except OSError as exc:
                connection.close()
                raise SandboxError("The sandbox cannot be reached", f"its agent's socket: {exc.strerror}") from exc
            except BaseException:
                connection.close()
                raise
        finally:
            os.close(held)
