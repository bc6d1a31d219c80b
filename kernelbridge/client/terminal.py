"""An interactive terminal of a session: typed into and read like a program's, across lost connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Protocol, Self

from kernelbridge.client.calls import Call
from kernelbridge.client.core import Frame, Kind
from kernelbridge.client.errors import Closed, ConnectionLost, RequestRefused, SessionLost, WaitTimeout


class Requests(Protocol):
    """What a terminal needs of its session."""

    session_id: str

    async def request(self, frame: Frame, kind: Kind) -> Frame:
        """Send a request, and return its answer."""
        ...

    def notify(self, call: Call, frame: Frame) -> bool:
        """Send a message that has no answer, and return whether there is a connection."""
        ...

    def abandon(self, call: Call) -> None:
        """Wait for a call no more."""
        ...


class AsyncTerminal:
    """A terminal that is open. Use it in `async with`, which closes it.

    When the connection breaks, the terminal is attached again. What it wrote meanwhile follows, up to the last MiB. So
    it is when the server detaches this client, because it read nothing for ten seconds.
    """

    def __init__(self, requests: Requests, call: Call, terminal_id: str) -> None:
        self._requests = requests
        self._call = call
        self.terminal_id = terminal_id
        self.exit_code: int | None = None
        """The exit code of its shell, when it has ended and the code is known."""
        self.cause: str | None = None
        """Why it ended, when `read` has returned its end: `exited`, `closed`, `session_closed`, `out_of_memory`, …"""
        self.replayed = False
        """Whether the latest output was written before this client attached: its questions are answered already."""
        self.left_out = 0
        """Bytes of output that are missing so far, because they came faster than they were read."""
        self._received = 0
        """Bytes of output since the terminal began, as far as this client knows them."""
        self._attached = False
        self._closed = False

    async def opened(self) -> Self:
        """Wait until it is open."""
        while not self._attached:
            frame = await self._call.next()
            if frame is None:
                raise Closed(f"Terminal '{self.terminal_id}' has ended", "it was closed before it was open")
            self._take(frame)
        return self

    async def read(self, *, wait: float | None = None) -> str:
        """Return the next output, or an empty string when the terminal has ended.

        Args:
            wait: Seconds to wait for output; None: without limit.

        Raises: `WaitTimeout` if nothing came; `SessionLost` if the shell is gone. Cancelling loses no output.
        """
        try:
            async with asyncio.timeout(wait):
                while (frame := await self._call.next()) is not None:
                    if text := self._take(frame):
                        return text
        except TimeoutError:
            raise WaitTimeout("The terminal wrote nothing", f"not within {wait:g} s; read again") from None
        end = await self._call.answer()
        self.exit_code, self.cause = end.get("exitCode"), end.get("cause")
        self._closed = True
        return ""

    async def __aiter__(self) -> AsyncIterator[str]:
        while text := await self.read():
            yield text

    async def write(self, data: str) -> None:
        r"""Type into it: Enter is `\r`, Ctrl-C is `\x03`.

        Raises: `ConnectionLost` if there is no connection at the moment: nothing was typed. What is typed in the
        moment in which a connection breaks may be lost, because nothing confirms it but the echo.
        """
        self._notify({"type": "terminal_input", "data": data})

    async def resize(self, rows: int, cols: int) -> None:
        """Set its size. Without a connection, it is set when there is one again.

        Raises: `ValueError` for rows or columns that are no whole number from 1 to 1000; nothing is changed then.
        """
        # What the server refuses must not be what the terminal is attached with after the next lost connection.
        if not all(cells in range(1, 1001) for cells in (rows, cols)):
            raise ValueError(f"a terminal cannot have {rows} rows and {cols} columns: each must be 1 to 1000")
        self._call.request.frame.update(rows=rows, cols=cols)
        with contextlib.suppress(ConnectionLost):
            self._notify({"type": "terminal_resize", "rows": rows, "cols": cols})

    async def close(self) -> None:
        """End it, and everything that runs in it. Idempotent."""
        if self._closed or self._call.settled:
            return
        self._closed = True
        try:
            frame = {"type": "close_terminal", "terminalId": self.terminal_id}
            await self._requests.request(frame, Kind.CHANGE)
        except RequestRefused as exc:
            if exc.code != "unknown_terminal":  # it has ended already
                raise
        finally:
            self._requests.abandon(self._call)
            if not self._call.settled:
                self.cause = "closed"
                self._call.settle({"type": "terminal_closed", "terminalId": self.terminal_id, "cause": "closed"})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def _notify(self, frame: Frame) -> None:
        if self._closed or self._call.settled:
            raise Closed(f"Terminal '{self.terminal_id}' has ended", "open another one")
        if not self._requests.notify(self._call, {**frame, "terminalId": self.terminal_id}):
            raise ConnectionLost(f"Terminal '{self.terminal_id}' has no connection now", "nothing was typed; try again")

    def _take(self, frame: Frame) -> str:
        """Return the output in a frame that this client does not have yet."""
        if frame["type"] == "error":
            raise RequestRefused(
                *(frame["message"], frame["error"]),
                code=frame.get("code", "internal_error"),
                retryable=frame.get("retryable", False),
                request="terminal_input",
            )
        if frame["type"] == "terminal_opened":
            if self._attached and not frame["reattached"]:
                raise SessionLost(
                    f"Terminal '{self.terminal_id}' was lost",
                    "its shell ended while there was no connection; a new one has taken its place",
                    session_id=self._requests.session_id,
                )
            self._attached = True
            self._replayed = 0
            return ""
        if frame["type"] != "terminal_data":
            return ""
        data, self.replayed = str(frame["data"]), bool(frame.get("replay"))
        if not self.replayed:
            missing = frame.get("leftOut", 0)
            self.left_out += missing
            self._received += missing + len(data.encode())
            return data
        # The replay begins `leftOut` bytes after the terminal did. Skip what came before the connection broke.
        self._replayed += frame.get("leftOut", 0)
        if self._received:  # it may begin after what is known
            self.left_out += max(0, self._replayed - self._received)
        encoded = data.encode()
        new = encoded[max(0, self._received - self._replayed) :]
        self._replayed += len(encoded)
        self._received = max(self._received, self._replayed)
        return new.decode(errors="replace")
