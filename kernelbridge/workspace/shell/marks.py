r"""Find the output of one command in what is read from a shell's terminal; pure, bytes in, bytes out.

The shell writes the semantic-prompt marks of OSC 133 before and after each command
(https://gitlab.freedesktop.org/Per_Bothner/specifications/blob/master/proposals/semantic-prompts.md), with a nonce that
belongs to this command alone:

    ESC ] 133 ; C ; <nonce> BEL                                          the command's output starts
    ESC ] 133 ; D ; <nonce> ; <status> ; <job> ; <cwd> <nonce> BEL       it ended

Prompts and the notices of older jobs lie outside of these. Marks without the nonce are output like any other. No name
of a directory contains the nonce, so `<cwd>` needs no escaping. `<job>` is the pid of a background job of the command
that has the terminal for its output, else empty.
"""

from __future__ import annotations

from enum import Enum, auto

_CWD_LIMIT = 8192
"""Bytes; a longer directory name is not reported. `PWD` is a variable, and may be gigabytes long."""
_AFTER_END_LIMIT = 1 << 20
"""Bytes that are kept of what comes after a command's end."""


class MarkState(Enum):
    """How far a command is."""

    WAITING = auto()
    """No mark was found yet; nothing is its output."""
    RUNNING = auto()
    """Everything is its output."""
    ENDING = auto()
    """Inside the end mark."""
    ENDED = auto()
    REFUSED = auto()
    """It ended without having started: the shell could not run it."""


class CommandMarks:
    """The state of one command, by what is read from the terminal, in pieces of any size."""

    def __init__(self, nonce: str) -> None:
        raw = nonce.encode("ascii")
        self._start = b"\x1b]133;C;" + raw + b"\x07"
        self._end = b"\x1b]133;D;" + raw + b";"
        self._close = raw + b"\x07"
        self._rest = b""
        self._payload = bytearray()
        self._payload_size = 0
        self.state = MarkState.WAITING
        self.status: int | None = None
        """The exit status, once it has ended."""
        self.cwd: bytes | None = None
        """The working directory, once it has ended; None when the shell did not know."""
        self.left_job = False
        """Whether it left a background job that writes to the terminal."""
        self.after_end = bytearray()
        """What was read since it ended: what such a job writes, between further marks."""

    def receive_data(self, data: bytes) -> bytes:
        """Process what was read, and return what of it is the command's output."""
        data, self._rest = self._rest + data, b""
        output = b""
        if self.state is MarkState.WAITING:
            data = self._wait(data)
        if self.state is MarkState.RUNNING:
            output, data = self._run(data)
        if self.state is MarkState.ENDING:
            data = self._finish(data)
        if self.state is MarkState.ENDED:
            self.after_end += data[: max(0, _AFTER_END_LIMIT - len(self.after_end))]
        return output

    def take_rest(self) -> bytes:
        """Return the output that was held back because it could have become a mark; for when no more comes."""
        rest, self._rest = self._rest, b""
        return rest if self.state is MarkState.RUNNING else b""

    def _wait(self, data: bytes) -> bytes:
        found, refused = data.find(self._start), data.find(self._end)
        if refused >= 0 and not 0 <= found < refused:
            self.state = MarkState.REFUSED
        elif found >= 0:
            self.state = MarkState.RUNNING
            return data[found + len(self._start) :]
        else:
            # The start mark is the longer one, so that this keeps enough of either.
            self._rest = data[-len(self._start) :]
        return b""

    def _run(self, data: bytes) -> tuple[bytes, bytes]:
        found = data.find(self._end)
        if found >= 0:
            self.state = MarkState.ENDING
            return data[:found], data[found + len(self._end) :]
        cut = _partial(data, self._end)
        self._rest = data[cut:]
        return data[:cut], b""

    def _finish(self, data: bytes) -> bytes:
        found = data.find(self._close)
        if found < 0:
            cut = max(0, len(data) - len(self._close) + 1)
            self._rest = data[cut:]
            self._keep(data[:cut])
            return b""
        self._keep(data[:found])
        self.state = MarkState.ENDED
        status, _, rest = bytes(self._payload).partition(b";")
        job, _, cwd = rest.partition(b";")
        self.left_job = job.isdigit()
        if status.isdigit() and len(status) <= 3:  # noqa: PLR2004 - an exit status is 0 to 255
            self.status = int(status)
        if cwd and self._payload_size <= _CWD_LIMIT:
            # The terminal writes a line feed as two characters.
            self.cwd = cwd.replace(b"\r\n", b"\n")
        return data[found + len(self._close) :]

    def _keep(self, data: bytes) -> None:
        self._payload_size += len(data)
        self._payload += data[: max(0, _CWD_LIMIT - len(self._payload))]


def _partial(data: bytes, mark: bytes) -> int:
    """Return the index where an incomplete mark may begin, or the length of `data`."""
    at = data.find(b"\x1b", max(0, len(data) - len(mark) + 1))
    while at >= 0:
        if mark.startswith(data[at:]):
            return at
        at = data.find(b"\x1b", at + 1)
    return len(data)
