"""Where a kernel's sockets are, and how they are reached safely.

Each incarnation gets its own short directory `k<n>` in the workspace's socket directory (UNIX
socket paths end at 107 bytes). It belongs to the bridge; the sandbox's user may write in it only
while the kernel binds. Then every socket is opened with `O_PATH | O_NOFOLLOW` and reached through
`/proc/self/fd`: whatever the sandbox puts in a socket's place afterwards, ZeroMQ connects to what
was checked. That part protects also where both users are the same and closing changes nothing.
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
"""ipykernel names the socket of port n `<ip>-<n>` for `transport: ipc`; other kernels do the same."""

_OPEN, _CLOSED = 0o777, 0o755
_FILE = "kernel.json"
_START = "start.py"
_SOCKET = "s"


class SocketDirectory:
    """The directory of one incarnation.

    `host` is the workspace's socket directory, owned by the bridge; `inside` is where the sandbox sees it.
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
        """Its path inside the sandbox."""
        return f"{self._inside}/{_FILE}"

    @property
    def start_file(self) -> str:
        """Path inside the sandbox of the program that starts the kernel."""
        return f"{self._inside}/{_START}"

    def prepare(self, kernel_name: str, start: str = "") -> None:
        """Make the directory, write the connection file, and let the sandbox's user in. Raises `KernelError`.

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
        # To everyone, and not by chown: with user namespaces the sandbox's uid is not the host's. The
        # directories above are closed to all but the bridge, so everyone is who sees it mounted: the sandbox.
        os.fchmod(self._fd, _OPEN)

    def _write(self, name: str, text: str) -> None:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self._fd)
        with os.fdopen(file, "w", encoding="utf-8") as out:
            os.fchmod(out.fileno(), 0o644)  # whatever the umask says
            out.write(text)

    def reopen(self) -> None:
        """Find a directory again that an earlier server made, with all its sockets; raises `KernelError`."""
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            raise KernelError("The kernel cannot be reached", f"its directory vanished: {exc.strerror}") from exc
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
        """Close the directory to the sandbox and hold on to its sockets; raises `KernelError`."""
        os.fchmod(self._fd, _CLOSED)
        for channel, port in PORTS.items():
            self._sockets[channel] = self._hold(f"{_SOCKET}-{port}")

    def _hold(self, name: str) -> int:
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as exc:
            raise KernelError("The kernel did not start", f"its socket {name} vanished: {exc.strerror}") from exc
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            raise KernelError("The kernel did not start", f"something else is in the place of its socket {name}")
        if not os.access(f"/proc/self/fd/{fd}", os.W_OK):
            os.close(fd)
            raise KernelError(
                "The kernel cannot be reached",
                "its sockets belong to the sandbox's user; run kernelbridge as root or as that user",
            )
        return fd

    def endpoint(self, channel: str) -> str:
        """Give the ZeroMQ address of a channel; valid until `close`."""
        return f"ipc:///proc/self/fd/{self._sockets[channel]}"

    def close(self) -> None:
        """Release the descriptors and remove the directory, unless it is gone or a successor's. Idempotent."""
        if self._fd < 0:
            return
        ours = self._is_ours()
        self.release()
        if not ours:
            return
        try:
            remove_tree(self._path)
        except OSError as exc:  # the sandbox's user may have left a directory that only root can empty
            log.warning("socket_directory_left", path=str(self._path), error=str(exc))

    def release(self) -> None:
        """Release the descriptors, and leave the directory to another server. Idempotent."""
        for fd in (*self._sockets.values(), self._fd):
            if fd >= 0:
                os.close(fd)
        self._sockets.clear()
        self._fd = -1

    def _is_ours(self) -> bool:
        """Whether its path still leads to it: the directory above is made anew for every sandbox."""
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False
