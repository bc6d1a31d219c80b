"""The sockets of a kernel: their names, the connection file that tells a kernel of them, and their addresses.

Each incarnation has its own directory `k<n>` in the sandbox's shared directory; the name is short because the path of a
UNIX socket has 107 bytes at most. The runtime makes the directory and leads the server to the sockets in it.
"""

from __future__ import annotations

import json
import secrets
from typing import Self

from kernelbridge.errors import DiskFull, KernelError, SandboxError
from kernelbridge.runtimes.contract import Sandbox, SocketDirectory

PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
"""With `transport: ipc`, ipykernel and other kernels name the socket of port n `<ip>-<n>`."""

_FILE = "kernel.json"
_START = "start.py"
_SOCKET = "s"
_NAMES = {channel: f"{_SOCKET}-{port}" for channel, port in PORTS.items()}


class KernelSockets:
    """The sockets of one incarnation, made by `make` or `reopen`."""

    def __init__(self, directory: SocketDirectory, incarnation: int, key: str) -> None:
        self.incarnation = incarnation
        self.key = key.encode()
        """Signs the messages of this incarnation."""
        self._directory = directory
        self._endpoints: dict[str, str] = {}

    @classmethod
    async def make(cls, sandbox: Sandbox, incarnation: int, kernel_name: str, start: str) -> Self:
        """Make the directory with the connection file and the start file, whose text is `start`.

        Raises `KernelError`, or `SandboxError` when the sandbox is gone. A failure or a cancellation leaves nothing
        behind.
        """
        name, key = f"k{incarnation}", secrets.token_hex(32)
        info = {
            "transport": "ipc",
            "ip": f"{sandbox.shared.path}/{name}/{_SOCKET}",
            **{f"{channel}_port": port for channel, port in PORTS.items()},
            "key": key,
            "signature_scheme": "hmac-sha256",
            "kernel_name": kernel_name,
        }
        try:
            directory = await sandbox.shared.make_sockets(name, {_FILE: json.dumps(info), _START: start})
        except DiskFull as exc:
            raise KernelError("The kernel did not start", exc.reason) from exc
        return cls(directory, incarnation, key)

    @classmethod
    def reopen(cls, sandbox: Sandbox, incarnation: int, key: str) -> Self:
        """Open the sockets of an earlier server's kernel. Raises `KernelError`."""
        try:
            sockets = cls(sandbox.shared.reopen_sockets(f"k{incarnation}"), incarnation, key)
        except SandboxError as exc:
            raise KernelError("The kernel cannot be reached", exc.reason) from exc
        try:
            sockets.open()
        except BaseException:
            sockets.release()
            raise
        return sockets

    @property
    def connection_file(self) -> str:
        """Path of the connection file inside the sandbox."""
        return f"{self._directory.path}/{_FILE}"

    @property
    def start_file(self) -> str:
        """Path inside the sandbox of the program that starts the kernel."""
        return f"{self._directory.path}/{_START}"

    def bound(self) -> bool:
        """Whether the kernel has made all its sockets."""
        return self._directory.bound(_NAMES.values())

    def open(self) -> None:
        """Find the paths of the sockets, all of which the kernel has made. Raises `KernelError`."""
        try:
            found = self._directory.endpoints(_NAMES.values())
        except SandboxError as exc:
            raise KernelError("The kernel cannot be reached", exc.reason) from exc
        self._endpoints = {channel: found[name] for channel, name in _NAMES.items()}

    def endpoint(self, channel: str) -> str:
        """Return the path of the socket of a channel. It is valid until `aclose` or `release`."""
        return self._endpoints[channel]

    async def aclose(self) -> None:
        """Remove the directory. Idempotent."""
        await self._directory.aclose()

    def release(self) -> None:
        """Leave the directory to another server. Idempotent."""
        self._directory.release()
