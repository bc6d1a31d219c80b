"""A person at a terminal of the test's own."""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

from tests.client.servers import PATIENCE, ServerProcess, environment


class Person:
    """Somebody at a terminal, who runs a command there."""

    def __init__(
        self,
        server: ServerProcess,
        *words: str,
        command: str = "shell",
        rows: int = 30,
        cols: int = 100,
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        line = [sys.executable, "-m", "kernelbridge", command, *words]
        self.terminal, its = pty.openpty()
        self.set_size(rows, cols)
        self.before = termios.tcgetattr(self.terminal)
        variables = environment(KERNELBRIDGE_URL=server.url, TERM="xterm", **environ)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.login_tty(its)
                os.execve(sys.executable, line, variables)
            finally:
                os._exit(127)  # or a copy of the tests would go on
        os.close(its)
        self.shown = self.all = ""

    def set_size(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def see(self, text: str) -> None:
        """Wait until something is shown; what was shown up to its end is not looked at again."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert select.select([self.terminal], [], [], deadline - time.monotonic())[0], self.shown[-2000:]
            try:
                self._take(os.read(self.terminal, 1 << 16))
            except OSError:
                raise AssertionError(self.shown[-2000:]) from None  # the command has ended
        self.shown = self.shown.partition(text)[2]

    def _take(self, data: bytes) -> None:
        text = data.decode(errors="replace")
        self.shown += text
        self.all += text

    def leave(self) -> int:
        """Wait for the end of the command, and give its exit code."""
        while True:
            try:
                data = os.read(self.terminal, 1 << 16)
            except OSError:  # the command has ended
                break
            self._take(data)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.terminal)
