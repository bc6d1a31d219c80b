"""A terminal in a sandbox whose two ends the bridge holds; see `contract.Terminal`."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from pathlib import Path

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.stream import Stream

_TIOCSPTLCK, _TIOCGPTN, _TIOCGPTPEER = 0x40045431, 0x80045430, 0x5441
"""linux/tty.h; python does not name them."""
_FLAGS = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
_WRITERS = 0o222
_LFLAG = 3
"""Index of the local flags in the list of `termios.tcgetattr`."""

_OWN_LIMIT = "the session has reached its limit of terminals (PTYs); end programs that hold some"
_MACHINES_LIMIT = "the machine has no more terminals (PTYs), which this session did not cause; try again later"


class AgentTerminal:
    """A terminal in a sandbox; see `contract.Terminal`. Both descriptors are owned from now on."""

    def __init__(self, master: int, slave: int, *, drop: Callable[[str], None]) -> None:
        """Hold it; `drop` is called with its path by `close`, not by `leave`."""
        number = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))[0]
        self.path = f"/dev/pts/{number}"
        self._stream = Stream(master)
        self._slave = slave
        self._drop = drop
        self._write_lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<AgentTerminal {self.path}{' closed' if self._stream.closed else ''}>"

    @property
    def master(self) -> int:
        """Descriptor of the bridge's end."""
        return self._stream.fd

    @property
    def slave(self) -> int:
        """Descriptor of the programs' end; -1 after `release`."""
        return self._slave

    async def read(self) -> bytes:
        """Return what was written on it next; `b""` at the end."""
        await self._stream.turn()
        while not self._stream.closed:
            data = self._stream.read_now()
            if data is not None:
                return data
            await self._stream.until_readable()
        return b""

    async def write(self, data: bytes) -> None:
        """Type all of `data`; raises `BrokenPipeError`."""
        async with self._write_lock:
            left = memoryview(data)
            while left:
                if self._stream.closed:
                    raise BrokenPipeError(errno.EPIPE, "the terminal is closed")
                left = left[await self._stream.write(left) :]

    def only_for_writing(self) -> None:
        """Forbid programs to open it for reading."""
        os.fchmod(self._slave, os.fstat(self._slave).st_mode & _WRITERS)

    def release(self) -> None:
        """Close the programs' end here."""
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1

    def close(self) -> None:
        """Close both ends."""
        if not self._stream.closed:
            self._drop(self.path)
        self.leave()

    def leave(self) -> None:
        """Close both ends here, and keep the terminal for another server."""
        self.release()
        self._stream.close()


def open_terminal(ptmx: int, rows: int, cols: int, *, uid: int, gid: int) -> tuple[int, int]:
    """Open a terminal in the sandbox's own devpts; return (master, slave), which the caller closes.

    `uid` and `gid` are the sandbox's user. Raises `SandboxError` if there are no more terminals. The bridge opens the
    master itself, so that nobody else can make reading it block.
    """
    try:
        master = os.open(f"/proc/self/fd/{ptmx}", _FLAGS | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        raise SandboxError("A terminal cannot be opened in the sandbox", no_terminals()) from exc
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        set_size(master, rows, cols)
        slave = open_slave(master)
        try:
            if os.geteuid() == 0:
                os.fchown(slave, uid, gid)  # so that its user can open it by name
            elif os.geteuid() != uid:
                os.fchmod(slave, 0o666)  # only the sandbox's user sees this devpts
        except BaseException:
            os.close(slave)
            raise
    except BaseException:
        os.close(master)
        raise
    return master, slave


def open_slave(master: int) -> int:
    """Open the programs' end of a terminal; raises OSError."""
    return int(fcntl.ioctl(master, _TIOCGPTPEER, _FLAGS))


def stop_echo(slave: int) -> None:
    """Switch off the echo of a terminal."""
    attributes = termios.tcgetattr(slave)
    attributes[_LFLAG] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)


def set_size(master: int, rows: int, cols: int) -> None:
    """Set the size of a terminal, in characters; its foreground process group gets SIGWINCH."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def no_terminals(settings: Path = Path("/proc/sys/kernel/pty")) -> str:
    """Return why no terminal can be opened: the session or the machine has no more.

    `settings` has the machine's numbers; without them the session's limit is assumed.
    """
    try:
        used, most, kept = (int((settings / name).read_text(encoding="ascii")) for name in ("nr", "max", "reserve"))
    except (OSError, ValueError):
        return _OWN_LIMIT
    return _MACHINES_LIMIT if used >= most - kept else _OWN_LIMIT
