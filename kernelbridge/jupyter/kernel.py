"""One incarnation of a kernel, from its process to its end.

    kernel = await Kernel.start(sandbox, spec, …)
    kernel.submit(Cell(code="1 + 1"), done)     # done(outcome), once, from the event loop
    await kernel.interrupt()
    await kernel.died                            # ExitStatus, after every execution has ended
    await kernel.aclose()

A kernel dies once: by itself, by `kill`, or because it broke the protocol. Whichever comes first,
every pending execution ends with its output so far and the cause, and `died` is set. A restart is
a new `Kernel`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

import structlog

from kernelbridge.errors import KernelError
from kernelbridge.jupyter import wire
from kernelbridge.jupyter.bounded import Overflow
from kernelbridge.jupyter.channels import MAX_MESSAGE, Channels
from kernelbridge.jupyter.connection import PORTS, SocketDirectory
from kernelbridge.jupyter.events import Listener
from kernelbridge.jupyter.execution import Cell, Execution, ExecutionTable, Outcome
from kernelbridge.runtimes.base import ExitStatus, Process, Sandbox
from kernelbridge.runtimes.facts import KernelSpec

log = structlog.get_logger(__name__)

MAX_OUTPUT = 10 << 20
"""Bytes of output kept of one execution, unless the caller says otherwise."""

_BIND_POLL = 0.005
_DRAIN_TIMEOUT = 0.5
_LOST_GRACE = 2.0
_TAIL = 4096

PROGRAM = ("names.py", "streams.py", "hooks.py")
"""Files of `kernelbridge.guest` that make the program that runs inside a Python kernel."""

_ENV = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
"""The debugger that ipykernel loads says nothing about frozen modules then."""

_IPYKERNEL_OPTIONS = ("--HistoryManager.enabled=False",)
"""No history database: its thread and its file cost a third of a small cell. `In`, `Out` and `_` stay."""


class Kernel:
    """A running kernel. Made by `start`."""

    def __init__(
        self,
        process: Process,
        spec: KernelSpec,
        directory: SocketDirectory,
        *,
        max_output: int,
        late: Callable[[str], None],
        overflow: Callable[[], Overflow | None] | None = None,
    ) -> None:
        self.spec = spec
        self.died: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        """How its process ended; set after every execution has been ended."""
        self._process = process
        self._directory = directory
        self._session = uuid.uuid4().hex
        self._codec = wire.Codec(directory.key, self._session)
        self._late = late
        self._ready = False
        self._table = ExecutionTable(max_output=max_output, clock=time.monotonic, late=self._on_late, overflow=overflow)
        self._requests: dict[str, asyncio.Future[wire.Message]] = {}
        self._iopub_seen = asyncio.Event()
        self._channels: Channels | None = None
        self._fault: str | None = None
        self._closing = False
        self._close: asyncio.Task[None] | None = None
        self._own_output: deque[bytes] = deque(maxlen=64)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reader = self._spawn(self._read_own_output())
        self._exited = self._spawn(process.wait())
        self._watcher = self._spawn(self._watch())

    def __repr__(self) -> str:
        state = "dead" if self.died.done() else "alive"
        return f"<Kernel {self.spec.name} {state} pending={len(self._table)}>"

    @property
    def alive(self) -> bool:
        """Whether a cell can be submitted. False as soon as its end is noticed, before `died` is set."""
        return self._channels is not None and not self._closing and self._fault is None and not self._exited.done()

    @classmethod
    async def start(
        cls,
        sandbox: Sandbox,
        spec: KernelSpec,
        *,
        sockets_host: Path,
        incarnation: int,
        on_late_output: Callable[[str], None],
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
        max_output: int = MAX_OUTPUT,
        max_message: int = MAX_MESSAGE,
        routing_id: bytes | None = None,
        hooks: bool = True,
        overflow: Callable[[], Overflow | None] | None = None,
    ) -> Self:
        """Start a kernel and return when it answers.

        `sockets_host` is the host's side of the sandbox's socket directory. `argv` replaces the kernelspec's,
        `{connection_file}` is still in it. `on_late_output` takes what background threads write when their
        cell is over. `start_timeout` is in seconds, `max_output` and `max_message` in bytes. Without `hooks` a Python
        kernel is left as it is. `overflow`: see `ExecutionTable`.
        Raises `KernelError`, or `SandboxError` when the sandbox is gone.
        """
        directory = SocketDirectory(sockets_host, sandbox.sockets_path, incarnation)
        try:
            directory.prepare(spec.name)
            process = await sandbox.exec(
                command(spec, directory.connection_file, argv, fast=hooks), env={**_ENV, **spec.env, **(env or {})}
            )
        except BaseException:
            directory.close()
            raise
        kernel = cls(process, spec, directory, max_output=max_output, late=on_late_output, overflow=overflow)
        try:
            await kernel._start(start_timeout, max_message, routing_id, hooks=hooks)
        except BaseException:
            await kernel.aclose()
            raise
        return kernel

    def submit(self, cell: Cell, done: Callable[[Outcome], None], listener: Listener | None = None) -> Execution:
        """Send a cell; `done` is called once, with its outcome, from the event loop; `listener` before, as it runs.

        Raises `KernelError` if the kernel is dead, `ValueError` if the code is not valid Unicode.
        """
        channels = self._alive()
        msg_id, frames = self._codec.request(
            "execute_request",
            {
                "code": cell.code,
                "silent": cell.silent,
                "store_history": cell.store_history and not cell.silent,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": False,
            },
            username=cell.user,
            metadata={"kernelbridge": {"filename": cell.filename, **({"stream": True} if cell.stream else {})}},
        )
        execution = self._table.add(msg_id, done, listener)
        channels.send("shell", frames)
        return execution

    async def interrupt(self, cause: str = "interrupted") -> None:
        """Interrupt the running cell and its subprocesses; if it then fails, `cause` is in its outcome."""
        if self.died.done():
            return
        running = self._table.running
        if running is not None:
            running.cause = cause
        if self.spec.interrupt_mode == "message":
            # The reply is not waited for: a kernel that is stuck gives none.
            self._alive().send("control", self._codec.request("interrupt_request", {})[1])
        else:
            await self._process.signal(signal.SIGINT)

    async def kill(self) -> None:
        """End the kernel and the processes of its session at once; `died` follows."""
        await self._process.kill()

    def end_pending(self, cause: str) -> None:
        """End every execution from outside, with its output so far."""
        self._table.end_all(cause, _ENDED[cause].format(status="from outside"))

    async def aclose(self) -> None:
        """Kill the kernel, end what is pending with `session_closed`, release everything. Idempotent.

        All callers wait for the same close. A step that fails keeps none from being taken; another call tries again.
        """
        if self._close is None or (self._close.done() and (self._close.cancelled() or self._close.exception())):
            self._closing = True
            self._close = asyncio.get_running_loop().create_task(self._take_down())
        await asyncio.shield(self._close)

    async def _take_down(self) -> None:
        async with contextlib.AsyncExitStack() as steps:  # from the last to the first
            steps.callback(self._directory.close)
            steps.push_async_callback(self._end_tasks)
            steps.push_async_callback(self._process.aclose)
            steps.callback(self._disconnect)
            self.end_pending("session_closed")

    async def _end_tasks(self) -> None:
        if not self.died.done():
            await asyncio.wait({self.died}, timeout=_LOST_GRACE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- start --------------------------------------------------------------------

    async def _start(self, timeout: float, max_message: int, routing_id: bytes | None, *, hooks: bool) -> None:  # noqa: ASYNC109 - the caller's, with a text of its own
        work = self._spawn(self._bring_up(max_message, routing_id, hooks=hooks))
        await asyncio.wait({work, self.died}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self.died.done():
            raise KernelError("The kernel did not start", self._last_words(self.died.result()))
        if not work.done():
            raise KernelError(
                "The kernel did not start",
                f"it did not answer within {timeout:g} s; {self._tail() or 'it printed nothing'}",
            )
        await work

    async def _bring_up(self, max_message: int, routing_id: bytes | None, *, hooks: bool) -> None:
        await self._bound()
        self._directory.secure()
        self._channels = Channels(
            {channel: self._directory.endpoint(channel) for channel in PORTS},
            routing_id=routing_id or self._session.encode(),
            received=self._received,
            lost=self._lost,
            max_message=max_message,
        )
        await self._nudge()
        if hooks and self.spec.language == "python":
            await self._install_hooks()
        self._ready = True

    async def _bound(self) -> None:
        # Another process makes these files and tells nobody: this is the one thing that has to be polled.
        while not self._directory.bound() and not self._exited.done():
            await asyncio.wait({self._exited}, timeout=_BIND_POLL)
        if self._exited.done():
            await asyncio.wait({self.died})

    async def _nudge(self) -> None:
        """Make the kernel speak until its output is heard: a subscription takes effect some time after connect."""
        await self._request("control", "kernel_info_request", {})
        while True:
            await self._request("shell", "kernel_info_request", {})
            if self._iopub_seen.is_set():
                return

    async def _install_hooks(self) -> None:
        """Run the hooks as an expression beside an empty cell: IPython wraps the streams while a cell runs."""
        run = f"exec(compile({hooks_source()!r}, '<kernelbridge>', 'exec'), {{'__name__': '<kernelbridge>'}})"
        beside = {"code": "", "silent": True, "store_history": False, "allow_stdin": False}
        reply = await self._request("shell", "execute_request", {**beside, "user_expressions": {"hooks": run}})
        if reply is None:
            return
        content = wire.decode(reply.content, wire.ExpressionReply)
        result = content.user_expressions.get("hooks", {})
        if result.get("status") != "ok":
            log.warning("kernel_hooks_failed", status=content.status, error=result.get("evalue"))

    # -- what the kernel sends ------------------------------------------------------

    def _received(self, channel: str, frames: list[bytes]) -> None:
        try:
            message = self._codec.parse(frames)
            if channel == "iopub":
                self._iopub_seen.set()
                self._table.on_iopub(message)
                return
            waiting = self._requests.get(message.parent_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
            elif channel == "shell":
                self._table.on_shell(message)
        except wire.BadFrame as exc:
            self._break(f"it sent {exc}")

    def _on_late(self, text: str) -> None:
        # Before the first cell it is the kernel's own: a library's warning at start, say.
        if self._ready:
            self._late(text)
        else:
            self._own_output.append(text.encode("utf-8", "replace")[-_TAIL:])

    def _lost(self, channel: str) -> None:
        if not self._exited.done() and not self._closing:
            self._spawn(self._end_disconnected(channel))

    async def _end_disconnected(self, channel: str) -> None:
        """End a kernel that has closed a channel without exiting: it has gone mad, or sent too much."""
        done, _ = await asyncio.wait({self._exited}, timeout=_LOST_GRACE)
        if not done:
            self._break(f"it closed its {channel} channel, or sent more in one message than is allowed")

    def _break(self, fault: str) -> None:
        """End a kernel that cannot be trusted any more."""
        if self._fault is not None or self.died.done():
            return
        self._fault = fault
        log.warning("kernel_broke_protocol", fault=fault)
        self._disconnect()
        self._table.end_all("kernel_died", f"KernelDied: the kernel was ended because {fault}; its variables are lost")
        self._spawn(self._process.kill())

    # -- its end --------------------------------------------------------------------

    async def _watch(self) -> None:
        """See the process end, and what was pending with it. `died` is set whatever fails on the way."""
        status = ExitStatus()
        try:
            await asyncio.wait({self._exited})
            if error := self._exited.exception():
                log.warning("kernel_status_unknown", error=repr(error))
            else:
                status = self._exited.result()
            if self._channels is not None and self._fault is None and not self._closing:
                await self._channels.drained(_DRAIN_TIMEOUT)
            self._disconnect()
            cause = "out_of_memory" if status.oom else "kernel_died"
            self._table.end_all(cause, _ENDED[cause].format(status=status))
            await asyncio.wait({self._reader}, timeout=_DRAIN_TIMEOUT)
        except Exception:
            log.exception("kernel_watch_failed")
        finally:
            if not self.died.done():  # whoever waited for it and was cancelled has cancelled it too
                self.died.set_result(status)

    def _disconnect(self) -> None:
        if self._channels is not None:
            self._channels.close()

    async def _read_own_output(self) -> None:
        """Keep the end of what the process itself prints: it is why a start failed."""
        while data := await self._process.read():
            self._own_output.append(data[-_TAIL:])

    def _tail(self) -> str:
        text = b"".join(self._own_output)[-_TAIL:].decode("utf-8", "replace").strip()
        return f"the last it printed: {text}" if text else ""

    def _last_words(self, status: ExitStatus) -> str:
        said = self._tail() or "it printed nothing; see that the image's kernel works"
        return f"{self._fault or 'its process ended'} ({status}); {said}"

    # -- helpers ----------------------------------------------------------------------

    def _alive(self) -> Channels:
        if self._channels is None or self._closing or self._fault is not None or self.died.done():
            raise KernelError("The kernel is dead", "send the request again: a new one is started")
        return self._channels

    async def _request(self, channel: str, msg_type: str, content: dict[str, Any]) -> wire.Message | None:
        """Send a request and wait for its reply, or None if the kernel dies."""
        msg_id, frames = self._codec.request(msg_type, content)
        waiting = self._requests[msg_id] = asyncio.get_running_loop().create_future()
        try:
            self._alive().send(channel, frames)
            await asyncio.wait({waiting, self.died}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            del self._requests[msg_id]

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        return task


_ENDED = {
    "kernel_died": "KernelDied: the kernel ended ({status}); its variables are lost",
    "out_of_memory": "OutOfMemory: the kernel used more memory than the session may; its variables are lost",
    "session_closed": "SessionClosed: the session was closed while the cell ran",
}


def hooks_source() -> str:
    """Give the program that runs inside a Python kernel before its first cell."""
    guest = resources.files("kernelbridge.guest")
    return "\n".join(guest.joinpath(name).read_text(encoding="utf-8") for name in PROGRAM)


def command(
    spec: KernelSpec, connection_file: str, argv: Sequence[str] | None = None, *, fast: bool = True
) -> list[str]:
    """Give the command that starts a kernel, `{connection_file}` replaced by its path inside the sandbox."""
    words = [word.replace("{connection_file}", connection_file) for word in (argv or spec.argv)]
    if fast and spec.language == "python" and any(word.startswith("ipykernel") for word in words):
        words += _IPYKERNEL_OPTIONS
    return words
