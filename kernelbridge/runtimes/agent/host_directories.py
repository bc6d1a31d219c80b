"""The directories of this machine that sandboxes see: a workspace's files, and what the server shares with a sandbox.

    <root>/workspaces/<workspace id>/files/                      at `WORKSPACE_PATH`; they outlive the sandbox
    <root>/run/<runtime>-<workspace id>-<unique>/                at `SHARED_PATH`; made and removed with the sandbox
        agent/socket                                             the agent's socket (`directory.py`)
        <name>                                                   texts that programs read (`SharedDirectory.put`)
        <name>/…                                                 the sockets of one program, such as a kernel

For runtimes whose sandboxes run on the server's machine. Nothing above `runtimes/` knows these paths, but for the
server's file service, which works on the first of them.

A shared directory belongs to the server, and programs can change nothing in it. But where a sandbox has the same user
as the server, they can: so nothing here follows a link, or waits for a FIFO.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog

from kernelbridge.aio.threads import in_thread
from kernelbridge.errors import DiskFull, SandboxError
from kernelbridge.runtimes.agent.directory import AgentDirectory
from kernelbridge.runtimes.contract import SHARED_PATH, SandboxSpec
from kernelbridge.trees import remove_tree

log = structlog.get_logger(__name__)

_OPEN, _CLOSED = 0o777, 0o755
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DISK_FULL = "the disk of the server's data directory is full"


class HostDirectories:
    """The directories below one server's data directory, `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._run = self.root / "run"
        self._live: set[Path] = set()

    def files(self, workspace_id: str) -> Path:
        """Return the directory of a workspace's files; makes nothing."""
        return self.root / "workspaces" / workspace_id / "files"

    async def share(self, runtime: str, spec: SandboxSpec) -> HostShared:
        """Make the shared directory of a new sandbox, ready for its agent. Raises `SandboxError` or `DiskFull`.

        A failure or a cancellation leaves nothing behind.
        """
        shared = self._hold(self._run / f"{runtime}-{spec.workspace_id}-{secrets.token_hex(4)}", SHARED_PATH)
        try:
            await in_thread(None, shared.make, spec)
        except BaseException as exc:
            await in_thread(None, shared.remove)
            if not isinstance(exc, OSError):
                raise
            failure = "The sandbox could not be made"
            if exc.errno in _FULL:
                remedy = "delete files (delete_file needs no container), or ask the server's operator for more space"
                raise DiskFull(failure, f"{_DISK_FULL}; {remedy}") from exc
            raise SandboxError(failure, f"{exc.strerror}: {exc.filename}") from exc
        return shared

    def adopt(self, host: Path, path: str) -> HostShared:
        """Return the shared directory of an earlier server's sandbox; `path` is where the sandbox sees it."""
        return self._hold(host, path)

    def remove_others(self) -> None:
        """Remove what was shared with earlier sandboxes, except those that were adopted. Blocking."""
        for path in self._run.glob("*"):
            if path not in self._live:
                self._hold(path, "").remove()

    def _hold(self, host: Path, path: str) -> HostShared:
        self._live.add(host)
        return HostShared(host, path, on_removed=self._live.discard)


class HostShared:
    """The shared directory of one sandbox; see `contract.SharedDirectory`. Made by `HostDirectories`.

    `host` is its path on this machine, `path` that in the sandbox, which a runtime may change.
    """

    def __init__(self, host: Path, path: str, *, on_removed: Callable[[Path], None]) -> None:
        self.host, self.path = host, path
        self.agent = AgentDirectory(host)
        self._on_removed = on_removed

    def make(self, spec: SandboxSpec) -> None:
        """Make it with the texts and links of `spec`, ready for the agent. Blocking; raises `OSError`."""
        self.host.parent.mkdir(mode=0o700, exist_ok=True)
        self.host.mkdir(mode=0o755)
        self.host.chmod(0o755)  # whatever the umask is: the sandbox's user must be able to enter it
        for name, content in spec.texts.items():
            _write(self.host / name, content, os.O_CREAT | os.O_EXCL)
        for name, target in spec.links.items():
            (self.host / name).symlink_to(target)
        self.agent.prepare()

    def remove(self) -> None:
        """Remove it with all that is in it. Idempotent; blocking."""
        self.agent.close()
        try:
            remove_tree(self.host)
        except OSError as exc:  # the sandbox's user may have made a directory in it that only root can empty
            log.warning("shared_directory_left", path=str(self.host), error=str(exc))
        self._on_removed(self.host)

    # -- the contract -------------------------------------------------------------

    def put(self, name: str, content: bytes) -> None:
        """Replace a text. It is overwritten in place: that is faster than a new file, and a full disk has room for it.

        Raises `SandboxError`.
        """
        try:
            try:
                _write(self.host / name, content)
            except FileNotFoundError:  # a server of another version has made the sandbox
                _write(self.host / name, content, os.O_CREAT | os.O_EXCL)
        except OSError as exc:
            reason = "the sandbox is gone" if isinstance(exc, FileNotFoundError) else str(exc.strerror)
            if exc.errno in _FULL:
                reason = f"{_DISK_FULL}; delete files, with delete_file or a short command"
            raise SandboxError("A text cannot be handed over", f"it could not be handed over: {reason}") from exc

    async def make_sockets(self, name: str, files: Mapping[str, str]) -> HostSockets:
        """Make a directory for a program's sockets, with some files. Raises `SandboxError` or `DiskFull`."""
        sockets = HostSockets(self.host / name, f"{self.path}/{name}")
        try:
            # In a thread, and the removal too: a hostile session can fill it with millions of files.
            await in_thread(None, sockets.make, files)
        except BaseException as exc:
            await sockets.aclose()
            if not isinstance(exc, OSError):
                raise
            failure = "A program's sockets cannot be prepared"
            if exc.errno in _FULL:
                raise DiskFull(failure, f"{_DISK_FULL}; delete files and send it again") from exc
            gone = isinstance(exc, FileNotFoundError)
            raise SandboxError(failure, "the sandbox is gone" if gone else str(exc.strerror)) from exc
        return sockets

    def reopen_sockets(self, name: str) -> HostSockets:
        """Return the directory of a program that an earlier server started. Raises `SandboxError`."""
        sockets = HostSockets(self.host / name, f"{self.path}/{name}")
        try:
            sockets.open()
        except OSError as exc:
            raise SandboxError("The sandbox cannot be used", f"its directory is gone: {exc.strerror}") from exc
        return sockets


class HostSockets:
    """The directory of one program's sockets; see `contract.SocketDirectory`.

    It belongs to the server, and the sandbox's user may write in it only until the program has bound its sockets. Then
    each socket is opened with `O_PATH | O_NOFOLLOW`, checked, and connected through `/proc/self/fd`: whatever the
    sandbox puts in its place afterwards, the server connects to the checked socket. This also protects where the
    sandbox's user is the server's own and may write in the directory anyway.
    """

    def __init__(self, host: Path, path: str) -> None:
        self._host, self.path = host, path
        self._fd = -1
        self._sockets: list[int] = []

    def make(self, files: Mapping[str, str]) -> None:
        """Make it with some files, and let the sandbox's user write in it. Blocking; raises `OSError`."""
        remove_tree(self._host)
        self._host.mkdir(mode=0o700)
        self.open()
        for name, text in files.items():
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=self._fd)
            with os.fdopen(file, "w", encoding="utf-8") as out:
                os.fchmod(out.fileno(), 0o644)  # regardless of the umask
                out.write(text)
        # Writable for everyone, not owned by the sandbox's user, whose uid on the host is unknown with user namespaces.
        # The directories above are closed, so that only the server and the sandbox, which has it mounted, reach it.
        os.fchmod(self._fd, _OPEN)

    def open(self) -> None:
        """Open the directory; raises `OSError`."""
        self._fd = os.open(self._host, _DIRECTORY)

    # -- the contract -------------------------------------------------------------

    def bound(self, names: Collection[str]) -> bool:
        """Whether the program has made all of these sockets."""
        try:
            for name in names:
                os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def endpoints(self, names: Collection[str]) -> dict[str, str]:
        """Close the directory to the sandbox's user, and return the paths to connect to. Raises `SandboxError`."""
        os.fchmod(self._fd, _CLOSED)
        return {name: f"/proc/self/fd/{self._open_socket(name)}" for name in names}

    async def aclose(self) -> None:
        """Close the descriptors and remove the directory, unless its path leads to a later one. Idempotent."""
        if self._fd >= 0:
            await in_thread(None, self._remove)

    def release(self) -> None:
        """Close the descriptors, and leave the directory to another server. Idempotent."""
        for fd in (*self._sockets, self._fd):
            if fd >= 0:
                os.close(fd)
        self._sockets.clear()
        self._fd = -1

    def _remove(self) -> None:
        try:
            ours = os.path.samestat(os.lstat(self._host), os.fstat(self._fd))
        except FileNotFoundError:
            ours = False
        self.release()
        if not ours:
            return
        try:
            remove_tree(self._host)
        except OSError as exc:  # as for the directory above
            log.warning("socket_directory_left", path=str(self._host), error=str(exc))

    def _open_socket(self, name: str) -> int:
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as exc:
            raise SandboxError("The program cannot be reached", f"its socket {name} is gone: {exc.strerror}") from exc
        self._sockets.append(fd)
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise SandboxError("The program cannot be reached", f"its socket {name} is not a socket")
        if not os.access(f"/proc/self/fd/{fd}", os.W_OK):
            raise SandboxError(
                "The program cannot be reached",
                "its sockets belong to the sandbox's user; run kernelbridge as root or as that user",
            )
        return fd


def _write(path: Path, content: bytes, flags: int = 0) -> None:
    """Overwrite a file that programs in the sandbox can read, or make it; raises `OSError`."""
    fd = os.open(path, flags | os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if flags & os.O_CREAT:
            os.fchmod(fd, 0o644)  # independent of the umask: the sandbox's user has to read it
        written = 0
        while written < len(content):
            written += os.pwrite(fd, content[written:], written)
        os.ftruncate(fd, len(content))
    finally:
        os.close(fd)
