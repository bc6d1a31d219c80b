"""The directory of a kernel's sockets, and safe connections to them.

Each incarnation has its own directory `k<n>` in the workspace's socket directory; the name is short because the path of
a UNIX socket has 107 bytes at most. The directory belongs to the server, and the sandbox's user may write in it only
until the kernel has bound its sockets. Then each socket is opened with `O_PATH | O_NOFOLLOW`, checked, and connected
through `/proc/self/fd`: whatever the sandbox puts in its place afterwards, ZeroMQ connects to the checked socket. This
also protects where the sandbox's user is the server's own and may write in the directory anyway.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from pathlib import Path

import structlog

from kernelbridge.errors import KernelError
from kernelbridge.trees import remove_tree

log = structlog.get_logger(__name__)

PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
"""With `transport: ipc`, ipykernel and other kernels name the socket of port n `<ip>-<n>`."""

_OPEN, _CLOSED = 0o777, 0o755
_FILE = "kernel.json"
_START = "start.py"
_SOCKET = "s"


class SocketDirectory:
    """The directory of one incarnation.

    `host` is the workspace's socket directory, owned by the server; `inside` is its path in the sandbox. `key` is that
    of a kernel that an earlier server started.
    """

    def __init__(self, host: Path, inside: str, incarnation: int, *, key: str | None = None) -> None:
        self.incarnation = incarnation
        self._path = host / f"k{incarnation}"
        self._inside = f"{inside}/k{incarnation}"
        self._fd = -1
        self._sockets: dict[str, int] = {}
        self.key = (key or secrets.token_hex(32)).encode()
        """Signs the messages of this incarnation."""

    @property
    def connection_file(self) -> str:
        """Path of the connection file inside the sandbox."""
        return f"{self._inside}/{_FILE}"

    @property
    def start_file(self) -> str:
        """Path inside the sandbox of the program that starts the kernel."""
        return f"{self._inside}/{_START}"

    def prepare(self, kernel_name: str, start: str = "") -> None:
        """Make the directory with the connection file, and let the sandbox's user write in it. Raises `KernelError`.

        `start` is the text of the start file.
        """
        try:
            self._prepare(kernel_name, start)
        except OSError as exc:
            reason = f"its directory cannot be made: {exc.strerror or exc}"
            if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
                reason = "the disk of the server's data directory is full; delete files and send it again"
            raise KernelError("The kernel did not start", reason) from exc

    def _prepare(self, kernel_name: str, start: str) -> None:
        remove_tree(self._path)
        self._path.mkdir(mode=0o700)
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        info = {
            "transport": "ipc",
            "ip": f"{self._inside}/{_SOCKET}",
            **{f"{channel}_port": port for channel, port in PORTS.items()},
            "key": self.key.decode(),
            "signature_scheme": "hmac-sha256",
            "kernel_name": kernel_name,
        }
        self._write(_FILE, json.dumps(info))
        self._write(_START, start)
        # Writable for everyone, not owned by the sandbox's user, whose uid on the host is unknown with user namespaces.
        # The directories above are closed, so that only the server and the sandbox, which has it mounted, reach it.
        os.fchmod(self._fd, _OPEN)

    def _write(self, name: str, text: str) -> None:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self._fd)
        with os.fdopen(file, "w", encoding="utf-8") as out:
            os.fchmod(out.fileno(), 0o644)  # regardless of the umask
            out.write(text)

    def reopen(self) -> None:
        """Open the directory and the sockets of an earlier server's kernel. Raises `KernelError`."""
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            raise KernelError("The kernel cannot be reached", f"its directory is gone: {exc.strerror}") from exc
        try:
            self.secure()
        except BaseException:
            self.release()
            raise

    def bound(self) -> bool:
        """Whether the kernel has made all its sockets."""
        try:
            for port in PORTS.values():
                os.stat(f"{_SOCKET}-{port}", dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def secure(self) -> None:
        """Close the directory to the sandbox's user and open its sockets. Raises `KernelError`."""
        os.fchmod(self._fd, _CLOSED)
        for channel, port in PORTS.items():
            self._sockets[channel] = self._open_socket(f"{_SOCKET}-{port}")

    def _open_socket(self, name: str) -> int:
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as exc:
            raise KernelError("The kernel did not start", f"its socket {name} is gone: {exc.strerror}") from exc
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            raise KernelError("The kernel did not start", f"its socket {name} is not a socket")
        if not os.access(f"/proc/self/fd/{fd}", os.W_OK):
            os.close(fd)
            raise KernelError(
                "The kernel cannot be reached",
                "its sockets belong to the sandbox's user; run kernelbridge as root or as that user",
            )
        return fd

    def endpoint(self, channel: str) -> str:
        """Return the ZeroMQ address of a channel. It is valid until `close` or `release`."""
        return f"ipc:///proc/self/fd/{self._sockets[channel]}"

    def close(self) -> None:
        """Close the descriptors and remove the directory, unless its path leads to a later one. Idempotent."""
        if self._fd < 0:
            return
        ours = self._is_ours()
        self.release()
        if not ours:
            return
        try:
            remove_tree(self._path)
        except OSError as exc:  # the sandbox's user may have made a directory in it that only root can empty
            log.warning("socket_directory_left", path=str(self._path), error=str(exc))

    def release(self) -> None:
        """Close the descriptors, and leave the directory to another server. Idempotent."""
        for fd in (*self._sockets.values(), self._fd):
            if fd >= 0:
                os.close(fd)
        self._sockets.clear()
        self._fd = -1

    def _is_ours(self) -> bool:
        """Whether its path still leads to it: the directory above is made again for every sandbox."""
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False
