"""One incarnation of a kernel, from its process to its end.

    kernel = await Kernel.start(sandbox, spec, …)
    kernel.submit(Cell(code="1 + 1"), done)     # done(outcome), once, from the event loop
    await kernel.help.complete("pri", 3)
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
import functools
import signal
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import structlog

from kernelbridge.errors import KernelBridgeError, KernelError
from kernelbridge.jupyter import end_causes, wire
from kernelbridge.jupyter.cell import Cell, Outcome, request_content, request_metadata
from kernelbridge.jupyter.channels import MAX_MESSAGE, Channels
from kernelbridge.jupyter.completion_watchdog import CompletionWatchdog
from kernelbridge.jupyter.connection import PORTS, SocketDirectory
from kernelbridge.jupyter.end_causes import Ended
from kernelbridge.jupyter.events import Listener
from kernelbridge.jupyter.execution import Execution, ExecutionTable
from kernelbridge.jupyter.help import Help
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.jupyter.intake import NO_OVERFLOWS, Consumer, Intake, Overflows
from kernelbridge.jupyter.launch import ENV, command, is_ipykernel, start_source
from kernelbridge.jupyter.requests import RequestTable
from kernelbridge.jupyter.startup import OwnOutput, in_time, install_hooks, until_bound, until_heard, with_room
from kernelbridge.runtimes.contract import ExitStatus, Process, Sandbox
from kernelbridge.runtimes.facts import KernelSpec

log = structlog.get_logger(__name__)

MAX_OUTPUT = 10 << 20
"""Bytes of output kept of one execution, unless the caller says otherwise."""

_DRAIN_TIMEOUT = 0.5
_LOST_GRACE = 2.0
_KEPT_BUSY = 1.0
"""Seconds after which a kernel that has not answered an interrupt is sent SIGINT."""

BEGIN_GRACE = 1.0
"""Seconds for a cell to begin; a kernel whose cell keeps the interpreter to itself never says so."""
_PREPARATION = 0.1
"""Seconds from a kernel's word that it begins a cell to the cell's first line, in one without our hooks."""


class Kernel:
    """A running kernel. Made by `start`."""

    def __init__(
        self,
        process: Process,
        spec: KernelSpec,
        directory: SocketDirectory,
        *,
        max_output: int,
        max_message: int,
        late: Callable[[str], None],
        overflows: Overflows = NO_OVERFLOWS,
        answers_interrupts: bool = False,
    ) -> None:
        self.spec = spec
        loop = asyncio.get_running_loop()
        self.died: asyncio.Future[ExitStatus] = loop.create_future()
        """How its process ended; set after every execution has been ended."""
        self.broken: asyncio.Future[None] = loop.create_future()
        """Set when it is ended because it broke the protocol; somebody must see that `died` follows."""
        self._process = process
        self._directory = directory
        self._session = uuid.uuid4().hex
        self._codec = wire.Codec(directory.key, self._session)
        self._late = late
        self._ready = False
        self._table = ExecutionTable(
            max_output=max_output, clock=time.monotonic, late=self._on_late, overflow=overflows.new
        )
        self._max_message = max_message
        take, refuse = self._take, self._break
        self._intake = Intake(
            self._codec, limit=max_message, take=take, refuse=refuse, spawn=self._spawn, behind=overflows.behind
        )
        self._watchdog = CompletionWatchdog(self._table, refuse=refuse, held=lambda: self._intake.held)
        self._answers_interrupts = answers_interrupts
        self._requests = RequestTable(self._codec, lambda channel, frames: self._alive().send(channel, frames))
        self.help = Help(self._requests, busy=lambda: len(self._table) > 0)
        """Answers questions about code."""
        self._iopub_seen = asyncio.Event()
        self._channels: Channels | None = None
        self._fault: str | None = None
        self._closing = False
        self._close: asyncio.Task[None] | None = None
        self.recalls = False
        """Whether our hooks are in it."""
        self._routing_id = self._session.encode()
        self._own_output = OwnOutput()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reader = self._spawn(self._own_output.read(process))
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
        overflows: Overflows = NO_OVERFLOWS,
    ) -> Self:
        """Start a kernel and return when it answers.

        `sockets_host` is the host's side of the sandbox's socket directory. `argv` replaces the kernelspec's, with
        `{connection_file}` in it. `on_late_output` takes what background threads write when their cell is over. Times
        are in seconds, sizes in bytes. Without `hooks` a Python kernel is left as it is. `overflows` take what is more
        than `max_output`. Raises `KernelError`, or `SandboxError` when the sandbox is gone.
        """
        directory = SocketDirectory(sockets_host, sandbox.sockets_path, incarnation)
        try:
            directory.prepare(spec.name, start_source())
            start_file = directory.start_file if hooks else None
            words = command(spec, directory.connection_file, argv, start_file=start_file)
            process = await sandbox.exec(words, env={**ENV, **spec.env, **(env or {})})
        except BaseException:
            directory.close()
            raise
        kernel = cls(
            process,
            spec,
            directory,
            max_output=max_output,
            max_message=max_message,
            late=on_late_output,
            overflows=overflows,
            answers_interrupts=spec.interrupt_mode == "message" or is_ipykernel(spec, argv),
        )
        try:
            work = kernel._spawn(kernel._bring_up(routing_id, hooks=hooks))
            await in_time(work, kernel.died, start_timeout, kernel._own_output, fault=lambda: kernel._fault)
        except KernelError as exc:
            await kernel.aclose()
            raise await with_room(exc, sandbox) from exc
        except BaseException:
            await kernel.aclose()
            raise
        return kernel

    @property
    def identity(self) -> KernelIdentity:
        """What another server has to know to adopt it."""
        return KernelIdentity(
            spec=self.spec,
            incarnation=self._directory.incarnation,
            key=self._directory.key.decode(),
            routing_id=self._routing_id.decode(),
            recalls=self.recalls,
            subshells=self.help.subshells,
            answers_interrupts=self._answers_interrupts,
            process=self._process.handle,
        )

    def submit(
        self,
        cell: Cell,
        done: Callable[[Outcome], None],
        listener: Listener | None = None,
        *,
        note: Callable[[str], None] | None = None,
    ) -> Execution:
        """Send a cell; `done` is called once, with its outcome, from the event loop; `listener` before, as it runs.

        `note` is called with the id of its request before that is sent. Raises `KernelError` if the kernel is dead,
        `ValueError` if the code is not valid Unicode.
        """
        channels = self._alive()
        content, metadata = request_content(cell), request_metadata(cell)
        msg_id, frames = self._codec.request("execute_request", content, username=cell.user, metadata=metadata)
        execution = self._table.add(msg_id, done, listener, asks=cell.allow_stdin)
        if note is not None:
            note(msg_id)
        try:
            channels.send("shell", frames)
        except KernelError as exc:
            self._break(exc.reason)
        return execution

    def subscribe(self, consumer: Consumer) -> Callable[[], None]:
        """Give every message of this kernel whole to `consumer` as well, from now on until it ends.

        That includes what no cell has asked for: comms, buffers, messages without a parent. Returns what ends the
        subscription.
        """
        self._intake.consumers.add(consumer)
        return functools.partial(self._intake.consumers.discard, consumer)

    async def interrupt(self, cause: str = "interrupted") -> None:
        """Interrupt the running cell and its subprocesses; if it then fails, `cause` is in its outcome.

        Returns when the kernel has had it, which one that is stuck never says. Only what runs now can be hit by it,
        if nothing is submitted before that. Raises `KernelBridgeError`.
        """
        running = self._table.running
        if running is None or self.died.done():
            return
        running.cause = cause
        await until_code_runs(running, self.died)
        if self._table.running is not running:
            return
        if not self._answers_interrupts:
            await self._process.signal(signal.SIGINT)
            return
        answer = self._requests.begin("control", "interrupt_request", {})
        try:
            await asyncio.wait({answer}, timeout=_KEPT_BUSY)
            # Code that keeps the interpreter to itself, such as a regular expression, keeps it from answering, too.
            if not answer.done() and self._table.running is running:
                await self._process.signal(signal.SIGINT)
            await answer
        finally:  # one that ignores them must not be asked too much to be asked again
            self._requests.forget([answer])

    async def interrupt_group(self) -> None:
        """Send SIGINT to the process group, whatever the kernel thinks of it. Raises `KernelBridgeError`.

        Our hooks also interrupt a cell that has SIGINT ignored or handled in some other way.
        """
        if self._table.running is not None and not self._exited.done():
            if self.recalls:
                self._requests.forget([self._requests.begin("control", "interrupt_request", {"kernelbridge": "force"})])
            await self._process.signal(signal.SIGINT)

    def reply_input(self, value: str) -> None:
        """Give the waiting cell its line of input. Raises `KernelError` if the kernel is dead."""
        self._alive().send("stdin", self._codec.request("input_reply", {"status": "ok", "value": value})[1])
        self._table.answered()

    def withdraw_question(self) -> None:
        """Let the running cell ask again: nobody will answer what it asked."""
        self._table.answered()

    async def kill(self) -> None:
        """End the kernel and the processes of its session at once; `died` follows."""
        await self._process.kill()

    def give_up(self, execution: Execution) -> None:
        """End one execution from outside: the kernel has done with it, but its reply is lost by an interrupt."""
        self._table.end(execution, end_causes.INTERRUPTED_BEHIND)

    def end_pending(self, why: Ended) -> None:
        """End every execution from outside, with its output so far."""
        self._table.end_all(why)

    async def aclose(self) -> None:
        """Kill the kernel, end what is pending with `session_closed`, release everything. Idempotent.

        All callers wait for the same close. A step that fails keeps none from being taken; another call tries again.
        """
        if self._close is None or (self._close.done() and (self._close.cancelled() or self._close.exception())):
            self._closing = True
            self._close = asyncio.get_running_loop().create_task(self._take_down())
        await asyncio.shield(self._close)

    async def leave(self) -> None:
        """Release everything, and let it run for another server; nobody is told how what is pending ends."""
        self._closing = True
        self._disconnect()
        await self._end_tasks(grace=0)
        self._directory.release()

    async def _take_down(self) -> None:
        async with contextlib.AsyncExitStack() as steps:  # from the last to the first
            steps.callback(self._directory.close)
            steps.push_async_callback(self._end_tasks)
            steps.push_async_callback(self._process.aclose)
            steps.callback(self._disconnect)
            self._requests.end()
            self.end_pending(end_causes.SESSION_CLOSED)

    async def _end_tasks(self, *, grace: float = _LOST_GRACE) -> None:
        if not self.died.done():
            await asyncio.wait({self.died}, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- start --------------------------------------------------------------------

    async def _bring_up(self, routing_id: bytes | None, *, hooks: bool) -> None:
        await until_bound(self._directory, self._exited)
        if self._exited.done():
            await asyncio.wait({self.died})
            return
        self._directory.secure()
        channels = self._connect(routing_id or self._routing_id)
        info = await until_heard(self._requests, self._iopub_seen)
        if info is None:
            await asyncio.wait({self.died})
            return
        self.help.subshells = "kernel subshells" in (info.supported_features or ())
        if hooks and self.spec.language == "python":
            self.recalls = await install_hooks(self._requests, channels)
        self._own_output.take()
        self._ready = True

    def _connect(self, routing_id: bytes) -> Channels:
        self._routing_id = routing_id
        self._channels = Channels(
            {channel: self._directory.endpoint(channel) for channel in PORTS},
            routing_id=routing_id,
            received=self._intake.received,
            lost=self._lost,
            stuck=lambda channel: self._break(f"it took nothing from its {channel} channel any more"),
            max_message=self._max_message,
        )
        return self._channels

    # -- what the kernel sends ------------------------------------------------------

    def _take(self, channel: str, message: wire.Message) -> Generator[None, None, None]:
        """Take a message of a channel; yields often. Raises `BadFrame`."""
        if self._fault is not None:
            return  # it was read before the channels were closed
        if channel == "iopub":
            self._iopub_seen.set()
            yield from self._table.taking_iopub(message)
        elif channel == "stdin":
            self._table.on_stdin(message)
        elif not self._requests.take(channel, message) and channel == "shell":
            yield from self._table.taking_shell(message)

    def _on_late(self, text: str) -> None:
        # Before the first cell it is the kernel's own: a library's warning at start, say.
        if self._ready:
            self._late(text)
        else:
            self._own_output.add(text.encode("utf-8", "replace"))

    def _lost(self, channel: str) -> None:
        if not self._exited.done() and not self._closing:
            self._spawn(self._refuse_lost(channel))

    async def _refuse_lost(self, channel: str) -> None:
        """End a kernel that has closed a channel and does not exit: it is broken, or has sent too much."""
        await asyncio.wait({self._exited}, timeout=_LOST_GRACE)
        if not self._exited.done():
            self._break(f"it closed its {channel} channel, or sent more in one message than is allowed")

    def _break(self, fault: str) -> None:
        """End a kernel that cannot be trusted any more."""
        if self._fault is not None or self.died.done():
            return
        self._fault = fault
        log.warning("kernel_broke_protocol", fault=fault)
        self._disconnect()
        self._table.end_all(end_causes.kernel_broke(fault))
        self._requests.end()
        self._spawn(self._end_process())
        self.broken.set_result(None)

    async def _end_process(self) -> None:
        try:
            await self._process.kill()
        except KernelBridgeError as exc:
            log.warning("kernel_not_killed", error=str(exc))

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
                if self.recalls:
                    await asyncio.wait({self._reader}, timeout=_DRAIN_TIMEOUT)
                    self._take_last_words(self._own_output.take())
            self._disconnect()
            self._table.end_all(end_causes.process_ended(status))
            self._requests.end()
            await asyncio.wait({self._reader}, timeout=_DRAIN_TIMEOUT)
        except Exception:
            log.exception("kernel_watch_failed")
        finally:
            if not self.died.done():  # whoever waited for it and was cancelled has cancelled it too
                self.died.set_result(status)

    def _take_last_words(self, text: str) -> None:
        """Take what a dead kernel's pump still had: the report of `faulthandler`, say."""
        running = self._table.running
        if running is not None and text:
            content = msgspec.json.encode({"name": "stderr", "text": text})
            self._table.on_iopub(wire.Message("stream", "", running.msg_id, b"{}", content))
        elif text:
            self._late(text)

    def _disconnect(self) -> None:
        self._watchdog.end()
        if self._channels is not None:
            self._channels.close()

    # -- helpers ----------------------------------------------------------------------

    def _alive(self) -> Channels:
        if self._channels is None or self._closing or self._fault is not None or self.died.done():
            raise KernelError("The kernel is dead", "send the request again: a new one is started")
        return self._channels

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def until_code_runs(execution: Execution, died: asyncio.Future[Any]) -> None:
    """Wait until an interrupt will reach the user's code, or the kernel has died.

    A kernel that has not taken the cell from its queue ignores interrupts, and then runs it; IPython's own preparations
    swallow them, or are broken off (our hooks keep an interrupt until they are over).
    """
    if execution.begun is None:
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        execution.on_begun = lambda: begun.set_result(None)
        await asyncio.wait({begun, died}, timeout=BEGIN_GRACE, return_when=asyncio.FIRST_COMPLETED)
    if execution.begun is not None and (left := execution.begun + _PREPARATION - time.monotonic()) > 0:
        await asyncio.wait({died}, timeout=left)
