"""The process tree of one local sandbox: which of its processes is the agent, whether it has ended, and how to end it.

It was launched by this server or by an earlier one. The agent is held by a pidfd. With isolation it is process 1 of a
PID namespace: the kernel reports its end when everything in the namespace is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

import msgspec

from kernelbridge.runtimes.local.launcher import Launched
from kernelbridge.runtimes.local.pidfd import open_pidfd, send_signal

_STATUS_CHUNK = 1 << 16


class _ChildPid(msgspec.Struct):
    """The document of bubblewrap's `--json-status-fd` that has the agent's pid."""

    pid: int = msgspec.field(name="child-pid", default=0)


class Tree:
    """A process tree. Made by `launched` or `left`; owns its descriptors."""

    def __init__(self, *, isolated: bool, launched: Launched | None = None, pid: int = 0, pidfd: int = -1) -> None:
        self._loop = asyncio.get_running_loop()
        self._isolated = isolated
        self._popen: subprocess.Popen[bytes] | None = None if launched is None else launched.popen
        self._status = -1 if launched is None else launched.status
        self._stderr = -1 if launched is None else launched.stderr
        self._pidfd = pidfd
        self._said = b""
        self._killed = False
        self.printed = ""
        """What it printed before its agent was ready; known when it has ended."""
        self.agent: asyncio.Future[int] = self._loop.create_future()
        """The agent's pid on this machine; 0 if it is not known."""
        self.ended: asyncio.Future[int | None] = self._loop.create_future()
        """How it ended, like `Popen.returncode`; None if an earlier server launched it: only the parent is told."""
        if pid:
            self.agent.set_result(pid)
        if self._status >= 0:
            self._loop.add_reader(self._status, self._on_status)
        else:
            self._loop.add_reader(self._pidfd, self._on_end)

    @classmethod
    def launched(cls, launched: Launched, *, isolated: bool) -> Tree:
        """Hold a tree that was just launched."""
        if isolated:
            return cls(isolated=True, launched=launched)
        pid = launched.popen.pid
        return cls(isolated=False, launched=launched, pid=pid, pidfd=open_pidfd(pid))

    @classmethod
    def left(cls, pid: int, pidfd: int, *, isolated: bool) -> Tree:
        """Hold a tree that an earlier server launched, by its agent."""
        return cls(isolated=isolated, pid=pid, pidfd=pidfd)

    def end(self) -> None:
        """End all of it. Idempotent."""
        if self.ended.done():
            return
        self._killed = True
        if self._pidfd >= 0:
            # Without isolation, the agent ends the rest.
            send_signal(self._pidfd, signal.SIGKILL if self._isolated else signal.SIGTERM)
        else:
            self.force_end()

    def force_end(self) -> None:
        """SIGKILL what is known of it."""
        if self._pidfd >= 0:
            send_signal(self._pidfd, signal.SIGKILL)
        if self._popen is not None and self._popen.returncode is None:
            # The first process leaves the monitor's group after the monitor has reported it; then `end` ends it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def leave(self) -> None:
        """Close the descriptors and leave it running; `ended` is never set then. Idempotent."""
        self._close()
        if self._popen is not None:
            self._popen.returncode = 0  # nobody waits for it any more

    def _on_status(self) -> None:
        try:
            data = os.read(self._status, _STATUS_CHUNK)
        except BlockingIOError:
            return
        if data:
            self._note_agent(data)
            return
        self._loop.remove_reader(self._status)
        if self._pidfd < 0:
            self._on_end()
            return
        # The monitor is gone, perhaps killed: end the rest as well.
        send_signal(self._pidfd, signal.SIGKILL)
        self._loop.add_reader(self._pidfd, self._on_end)

    def _note_agent(self, data: bytes) -> None:
        if self.agent.done():
            return
        self._said += data  # it may come in pieces
        line, newline, _ = self._said.partition(b"\n")
        if not newline:
            return
        with contextlib.suppress(msgspec.MsgspecError):
            pid = msgspec.json.decode(line, type=_ChildPid).pid
            self.agent.set_result(pid)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    self._pidfd = open_pidfd(pid)
        if self._killed:
            self.end()

    def _on_end(self) -> None:
        if not self.agent.done():
            self.agent.set_result(0)
        if self._stderr >= 0:
            self.printed = _tail(self._stderr)
        returncode = None if self._popen is None else self._popen.wait()
        self._close()
        self.ended.set_result(returncode)

    def _close(self) -> None:
        for fd in (self._status, self._pidfd):
            if fd >= 0:
                self._loop.remove_reader(fd)
        for fd in (self._status, self._stderr, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._status = self._stderr = self._pidfd = -1


def _tail(fd: int, limit: int = 2000) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, limit, max(0, size - limit)).decode("utf-8", "replace").strip()
