"""One interactive terminal: a shell on a PTY, its scrollback, and the connections that show it.

    input ──▶ queue ──▶ process ──▶ decoder ──▶ held for `MERGE` ──▶ replay
                           ▲                                    └──▶ every viewer
                           └── not read while a viewer has too much unread

A viewer that reads nothing for `PATIENCE` seconds is detached, so that the others wait no longer for it. When the
terminal ends, everything that was started in it ends, daemons included.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from kernelbridge.errors import KernelBridgeError, LimitExceeded, TerminalError
from kernelbridge.runtimes.contract import ExitStatus, Process, Sandbox
from kernelbridge.workspace.journal.feed import Listener
from kernelbridge.workspace.shell import script
from kernelbridge.workspace.terminals.scrollback import Replay

log = structlog.get_logger(__name__)

MERGE = 0.004
"""Seconds after output was sent in which further output is held back, to be joined."""
CHUNK = 1 << 15
"""Characters of output in one message; no more are held back."""
BACKLOG = 1 << 18
"""Bytes that a viewer may have unread while the terminal is read."""
PATIENCE = 10.0
"""Seconds that the terminal waits for a viewer that has more unread."""
INPUT_LIMIT = 8 << 20
"""Bytes of input that may wait because the program in the terminal does not read."""
_HANG_UP = 0.5
"""Seconds between SIGHUP, after which a shell writes its history, and SIGKILL."""
_END_TIMEOUT = 5.0
"""Seconds for the last output, and for the shell's end, to arrive after everything in the terminal was killed."""
_LOSS_TIMEOUT = 2.0
"""Seconds for the sandbox's end to arrive, after SIGKILL ended the shell."""

Cause = Literal["exited", "closed", "session_closed", "out_of_memory", "sandbox_lost", "too_slow"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a terminal ended, or how a connection was detached from it."""

    cause: Cause
    exit_code: int | None = None
    """The exit code of its shell; 128 + n for an end by signal n."""


class Viewer(Protocol):
    """A connection that shows a terminal, or has requested one. No method blocks or raises."""

    @property
    def client(self) -> Listener:
        """The connection, which has one view of a terminal."""
        ...

    def opened(self, terminal_id: str, rows: int, cols: int, *, reattached: bool) -> None:
        """Report that it shows the terminal from now on."""
        ...

    def show(self, terminal_id: str, text: str, *, replay: bool = False, left_out: int = 0) -> None:
        """Show output; `left_out` bytes are missing before it."""
        ...

    def closed(self, terminal_id: str, ending: Ending) -> None:
        """Report that it does not show the terminal any more."""
        ...

    def failed(self, error: KernelBridgeError) -> None:
        """Report that its request failed."""
        ...


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a terminal in characters."""

    rows: int
    cols: int


StartShell = Callable[[Size], Awaitable[tuple[Sandbox, Process]]]
"""Start an interactive shell of this size, or adopt the one of an earlier server."""


class Terminal:
    """One terminal. `run` is its life; the other methods may be called meanwhile, and do not wait."""

    def __init__(self, terminal_id: str, size: Size, *, on_ending: Callable[[], None], adopted: bool = False) -> None:
        """`on_ending` is called when it begins to end; `adopted`: an earlier server has opened it."""
        self.id = terminal_id
        self._adopted = adopted
        self._left = False
        self._size = size
        self._on_ending = on_ending
        self._process: Process | None = None
        """Its shell, while that runs."""
        self._cause: Cause | None = None
        self._viewers: dict[str, tuple[Viewer, Callable[[], None]]] = {}
        self._closers: list[Viewer] = []
        self._replaced: list[Viewer] = []
        """Viewers that were replaced before it was open: their requests must be answered as well."""
        self.replay = Replay()
        self._held: list[str] = []
        self._length = 0
        self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._input: deque[bytes] = deque()
        self._input_size = 0
        self._typed = asyncio.Event()
        self._end_wanted = asyncio.Event()
        self._all_gone = asyncio.Event()
        """Set when nothing in it writes any more: the rest of the output fits into the viewers' backlogs."""

    def __repr__(self) -> str:
        state = "not running" if self._process is None else "running"
        return f"<Terminal {self.id} {state}, {len(self._viewers)} viewers, {self._input_size} bytes to type>"

    @property
    def size(self) -> Size:
        """The size that was set last."""
        return self._size

    # -- requests ----------------------------------------------------------------

    def attach(self, viewer: Viewer) -> None:
        """Show it to a connection, its latest output first. Another view of the same connection is replaced."""
        if self._process is None and viewer.client.id in self._viewers:
            self._replaced.append(self._viewers[viewer.client.id][0])
        self._detach(viewer.client.id)
        self._flush()
        self._viewers[viewer.client.id] = (viewer, viewer.client.on_close(lambda: self._detach(viewer.client.id)))
        if self._process is None:
            return  # `run` does the rest when it is open
        self._opened(viewer, reattached=True)

    def _opened(self, viewer: Viewer, *, reattached: bool) -> None:
        viewer.opened(self.id, self._size.rows, self._size.cols, reattached=reattached)
        text, left_out = self.replay.latest()
        for start in range(0, len(text), CHUNK):
            viewer.show(self.id, text[start : start + CHUNK], replay=True, left_out=0 if start else left_out)

    def type(self, data: str) -> None:
        """Type `data` after earlier input. Raises `BadRequest` and `LimitExceeded`."""
        encoded = script.encoded(data, "The input cannot be typed", "data")
        if self._input_size + len(encoded) > INPUT_LIMIT:
            raise LimitExceeded(
                "Too much input waits for the terminal",
                f"the limit is {INPUT_LIMIT >> 20} MiB, and its program does not read; nothing of this was typed",
            )
        self._input.append(encoded)
        self._input_size += len(encoded)
        self._typed.set()

    def resize(self, size: Size) -> None:
        """Set its size; if it changes, its programs get SIGWINCH."""
        if size != self._size:
            self._size = size
            if self._process is not None:
                self._process.resize(size.rows, size.cols)

    def close(self, closer: Viewer) -> None:
        """End it and everything in it; `closer.closed` is called after that."""
        self._closers.append(closer)
        self.end("closed")

    def end(self, cause: Cause) -> None:
        """Begin to end it; the cause of the first call counts."""
        if self._cause is None:
            self._cause = cause
        self._end_wanted.set()

    def leave(self) -> None:
        """Leave it to another server: a cancellation of `run` ends nothing from now on."""
        self._flush()
        self._left = True

    # -- its life -----------------------------------------------------------------

    async def run(self, start: StartShell) -> None:
        """Start the shell, and serve it until it and everything in it has ended.

        A cancellation ends it as well, except after `leave`.
        """
        size = self._size
        try:
            sandbox, process = await start(size)
        except KernelBridgeError as exc:
            log.warning("terminal_not_started", terminal=self.id, error=str(exc))
            self._not_started(exc)
            return
        except Exception as exc:
            log.exception("terminal_not_started", terminal=self.id)
            self._not_started(TerminalError("The terminal could not be opened", f"{type(exc).__name__}: {exc}"))
            return
        self._process = process
        if self._adopted or size != self._size:  # an earlier server may have noted a size and not set it
            process.resize(self._size.rows, self._size.cols)
        for number, viewer in enumerate([*self._replaced, *(viewer for viewer, _ in self._viewers.values())]):
            self._opened(viewer, reattached=self._adopted or number > 0)
        problem: KernelBridgeError | None = None
        status = ExitStatus()
        try:
            status = await self._serve(process)
        except KernelBridgeError as exc:
            problem = exc
            log.warning("terminal_not_ended", terminal=self.id, error=str(exc))
        finally:
            self._process = None
            if not self._left:
                self._finish(await self._ending(sandbox, status), problem)

    async def _serve(self, process: Process) -> ExitStatus:
        loop = asyncio.get_running_loop()
        reader = loop.create_task(self._read(process))
        writer = loop.create_task(self._type(process))
        exited = loop.create_task(process.wait())
        end_wanted = loop.create_task(self._end_wanted.wait())
        try:
            await asyncio.wait({exited, end_wanted}, return_when=asyncio.FIRST_COMPLETED)
            self._on_ending()
            if not exited.done():
                await self._hang_up(process, exited)
            await process.kill()
            self._all_gone.set()
            await asyncio.wait({reader, exited}, timeout=_END_TIMEOUT)
            return exited.result() if exited.done() else ExitStatus()
        finally:
            tasks = [reader, writer, exited, end_wanted]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if not self._left:
                self._on_ending()
                await process.aclose()

    async def _hang_up(self, process: Process, exited: asyncio.Task[ExitStatus]) -> None:
        if self._cause == "session_closed":
            await asyncio.wait({exited}, timeout=_END_TIMEOUT)  # with its sandbox, which is being destroyed
        else:
            await process.signal(signal.SIGHUP)
            await asyncio.wait({exited}, timeout=_HANG_UP)

    def _not_started(self, error: KernelBridgeError) -> None:
        self._on_ending()
        ending = Ending(self._cause or "exited")
        for _, forget in self._viewers.values():
            forget()
        for viewer in [*self._replaced, *(viewer for viewer, _ in self._viewers.values())]:
            if self._cause == "session_closed":
                viewer.closed(self.id, ending)
            else:
                viewer.failed(error)
        for closer in self._closers:
            closer.closed(self.id, ending)
        self._viewers.clear()

    async def _ending(self, sandbox: Sandbox, status: ExitStatus) -> Ending:
        if self._cause is not None:
            return Ending(self._cause)
        code = status.code if status.signal is None else 128 + status.signal
        if status.oom:
            return Ending("out_of_memory", code)
        if status.signal == signal.SIGKILL:
            with contextlib.suppress(TimeoutError):
                lost = await asyncio.wait_for(sandbox.wait(), _LOSS_TIMEOUT)
                return Ending("out_of_memory" if lost.oom else "sandbox_lost")
        return Ending("exited", code)

    def _finish(self, ending: Ending, problem: KernelBridgeError | None) -> None:
        self._flush()
        closers = {closer.client.id for closer in self._closers}
        for viewer, forget in self._viewers.values():
            forget()
            if viewer.client.id not in closers:
                viewer.closed(self.id, ending)
        self._viewers.clear()
        for closer in self._closers:
            if problem is None:
                closer.closed(self.id, ending)
            else:
                closer.failed(problem)

    # -- its input ----------------------------------------------------------------

    async def _type(self, process: Process) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended
            while True:
                await self._typed.wait()
                self._typed.clear()
                while self._input:
                    data = self._input.popleft()
                    for start in range(0, len(data), CHUNK):
                        await process.write(data[start : start + CHUNK])
                    self._input_size -= len(data)

    # -- its output ---------------------------------------------------------------

    async def _read(self, process: Process) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while data := await process.read():
            self._add(decoder.decode(data))
            await self._room()
        self._add(decoder.decode(b"", final=True))
        self._flush()

    def _add(self, text: str) -> None:
        if not text:
            return
        self._held.append(text)
        self._length += len(text)
        if self._timer is not None and self._length < CHUNK:
            return
        loop = asyncio.get_running_loop()
        if self._length >= CHUNK or loop.time() >= self._sent_at + MERGE:
            self._flush()
        else:
            self._timer = loop.call_at(self._sent_at + MERGE, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._held:
            return
        text = "".join(self._held)
        self._held.clear()
        self._length = 0
        self._sent_at = asyncio.get_running_loop().time()
        self.replay.append(text)
        for start in range(0, len(text), CHUNK):
            piece = text[start : start + CHUNK]
            for viewer, _ in self._viewers.values():
                viewer.show(self.id, piece)

    async def _room(self) -> None:
        """Wait while a viewer has too much unread; detach those that read nothing."""
        full = [viewer for viewer, _ in self._viewers.values() if viewer.client.backlog > BACKLOG]
        if not full or self._all_gone.is_set():
            return
        loop = asyncio.get_running_loop()
        waits = {loop.create_task(viewer.client.room(BACKLOG)): viewer for viewer in full}
        all_read = loop.create_task(asyncio.wait(waits, timeout=PATIENCE))
        gone = loop.create_task(self._all_gone.wait())
        try:
            await asyncio.wait({all_read, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not all_read.done():
                return
            for task in [task for task in waits if not task.done()]:
                viewer = waits[task]
                if self._shows(viewer):
                    self._detach(viewer.client.id)
                    viewer.closed(self.id, Ending("too_slow"))
        finally:
            for each in (all_read, gone, *waits):
                each.cancel()
            await asyncio.wait({all_read, gone, *waits})

    def _shows(self, viewer: Viewer) -> bool:
        view = self._viewers.get(viewer.client.id)
        return view is not None and view[0] is viewer

    def _detach(self, viewer_id: str) -> None:
        view = self._viewers.pop(viewer_id, None)
        if view is not None:
            view[1]()
