"""One incarnation of a kernel, from its process to its end.

    kernel = await Kernel.start(sandbox, spec, …)
    kernel.submit(Cell(code="1 + 1"), done)     # calls done(outcome) once, from the event loop
    await kernel.help.complete("pri", 3)
    await kernel.interrupt()
    await kernel.died                            # ExitStatus; by then every execution has ended
    await kernel.aclose()

A kernel ends once: by itself, by `kill`, or because it broke the protocol. Then every pending execution ends with its
output so far and the cause, and `died` is set. A restart is a new `Kernel`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Self

import msgspec
import structlog

from kernelbridge.errors import KernelBridgeError, KernelError
from kernelbridge.jupyter import end_causes, wire
from kernelbridge.jupyter.cell import Cell, Outcome, request_content, request_metadata
from kernelbridge.jupyter.channels import MAX_MESSAGE, Channels
from kernelbridge.jupyter.completion_watchdog import CompletionWatchdog
from kernelbridge.jupyter.connection import PORTS, KernelSockets
from kernelbridge.jupyter.end_causes import Ended
from kernelbridge.jupyter.events import Listener
from kernelbridge.jupyter.execution import Execution, ExecutionTable
from kernelbridge.jupyter.help import Help
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.jupyter.intake import NO_SPILLS, Consumer, Intake, Spills
from kernelbridge.jupyter.launch import ENV, command, is_ipykernel, start_source
from kernelbridge.jupyter.requests import RequestTable
from kernelbridge.jupyter.startup import (
    ProcessOutput,
    explained,
    install_hooks,
    wait_bound,
    wait_heard,
    wait_started,
)
from kernelbridge.runtimes.contract import END_SECONDS, ExitStatus, Process, Sandbox
from kernelbridge.runtimes.facts import KernelSpec

log = structlog.get_logger(__name__)

MAX_OUTPUT = 10 << 20
"""Bytes of output kept of one execution, unless the caller says otherwise."""

_DRAIN_TIMEOUT = 0.5
"""Seconds to wait, after the end of the process, for the rest of its messages and of what it printed."""
_EXIT_GRACE = 2.0
"""Seconds for the process to exit after it was killed."""
_DISCONNECT_GRACE = END_SECONDS + 1.5
"""Seconds for the process to exit after it closed a channel. Its sandbox may have ended with it."""
_INTERRUPT_GRACE = 1.0
"""Seconds after which a kernel that has not answered an interrupt request gets SIGINT."""

BEGIN_GRACE = 1.0
"""Seconds for a cell to begin. If the cell holds the interpreter's lock, its kernel never reports the beginning."""
_PREPARATION = 0.1
"""Seconds from a kernel's report that it begins a cell to the cell's first line, without our hooks."""


class Kernel:
    """A running kernel, made by `start`."""

    def __init__(
        self,
        process: Process,
        spec: KernelSpec,
        sockets: KernelSockets,
        *,
        max_output: int,
        max_message: int,
        late: Callable[[str], None],
        spills: Spills = NO_SPILLS,
        answers_interrupts: bool = False,
    ) -> None:
        self.spec = spec
        loop = asyncio.get_running_loop()
        self.died: asyncio.Future[ExitStatus] = loop.create_future()
        """How its process ended. It is set when every execution has ended."""
        self.broken: asyncio.Future[None] = loop.create_future()
        """Set when the kernel broke the protocol and is killed. The owner must make sure that `died` follows."""
        self._process = process
        self._sockets = sockets
        self._session = uuid.uuid4().hex
        self._codec = wire.Codec(sockets.key, self._session)
        self._late = late
        self._ready = False
        self._table = ExecutionTable(max_output=max_output, clock=time.monotonic, late=self._on_late, spill=spills.new)
        self._max_message = max_message
        self._intake = Intake(
            self._codec,
            limit=max_message,
            handle=self._handle,
            on_fault=self._end_faulty,
            spawn=self._spawn,
            behind=spills.behind,
        )
        self._watchdog = CompletionWatchdog(self._table, on_fault=self._end_faulty, unread=lambda: self._intake.unread)
        self._answers_interrupts = answers_interrupts
        self._requests = RequestTable(self._codec, lambda channel, frames: self._alive().send(channel, frames))
        self.help = Help(self._requests, busy=lambda: len(self._table) > 0)
        """Answers questions about code: completion, inspection."""
        self._iopub_seen = asyncio.Event()
        self._channels: Channels | None = None
        self._fault: str | None = None
        self._closing = False
        self._close: asyncio.Task[None] | None = None
        self.has_hooks = False
        """Whether our hooks run in it."""
        self._routing_id = self._session.encode()
        self._process_output = ProcessOutput()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reader = self._spawn(self._process_output.read(process))
        self._exited = self._spawn(process.wait())
        self._watcher = self._spawn(self._watch())

    def __repr__(self) -> str:
        state = "dead" if self.died.done() else "alive"
        return f"<Kernel {self.spec.name} {state} pending={len(self._table)}>"

    @property
    def alive(self) -> bool:
        """Whether a cell can be submitted. It is False as soon as its end is noticed, before `died` is set."""
        return self._channels is not None and not self._closing and self._fault is None and not self._exited.done()

    @classmethod
    async def start(
        cls,
        sandbox: Sandbox,
        spec: KernelSpec,
        *,
        incarnation: int,
        on_late_output: Callable[[str], None],
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
        max_output: int = MAX_OUTPUT,
        max_message: int = MAX_MESSAGE,
        hooks: bool = True,
        spills: Spills = NO_SPILLS,
    ) -> Self:
        """Start a kernel and return when it answers.

        `argv`, which contains `{connection_file}`, replaces the command of the kernelspec. `on_late_output` is called
        with text that background threads write after the end of their cell. Times are in seconds, sizes in bytes.
        Without `hooks` a Python kernel stays as it is. `spills` makes what stores output beyond `max_output`. Raises
        `KernelError`, or `SandboxError` when the sandbox is gone. If cancelled, the kernel is killed and removed.
        """
        sockets = await KernelSockets.make(sandbox, incarnation, spec.name, start_source())
        try:
            start_file = sockets.start_file if hooks else None
            words = command(spec, sockets.connection_file, argv, start_file=start_file)
            process = await sandbox.exec(words, env={**ENV, **spec.env, **(env or {})})
        except BaseException:
            await sockets.aclose()
            raise
        kernel = cls(
            process,
            spec,
            sockets,
            max_output=max_output,
            max_message=max_message,
            late=on_late_output,
            spills=spills,
            answers_interrupts=spec.interrupt_mode == "message" or is_ipykernel(spec, argv),
        )
        try:
            work = kernel._spawn(kernel._prepare(hooks=hooks))
            await wait_started(work, kernel.died, start_timeout, kernel._process_output, fault=lambda: kernel._fault)
        except KernelError as exc:
            await kernel.aclose()
            raise await explained(exc, sandbox) from exc
        except BaseException:
            await kernel.aclose()
            raise
        return kernel

    @property
    def identity(self) -> KernelIdentity:
        """What another server needs to adopt it."""
        return KernelIdentity(
            spec=self.spec,
            incarnation=self._sockets.incarnation,
            key=self._sockets.key.decode(),
            routing_id=self._routing_id.decode(),
            has_hooks=self.has_hooks,
            subshells=self.help.subshells,
            answers_interrupts=self._answers_interrupts,
            process=self._process.id,
        )

    def submit(
        self,
        cell: Cell,
        done: Callable[[Outcome], None],
        listener: Listener | None = None,
        *,
        note: Callable[[str], None] | None = None,
    ) -> Execution:
        """Send a cell. The event loop calls `listener` with the cell's events, and then `done` once with its outcome.

        `note` is called with the id of the request before that is sent. Raises `KernelError` if the kernel is dead,
        `ValueError` if the code is not valid Unicode.
        """
        channels = self._alive()
        content, metadata = request_content(cell), request_metadata(cell)
        msg_id, frames = self._codec.request("execute_request", content, metadata=metadata)
        execution = self._table.add(msg_id, done, listener, allow_stdin=cell.allow_stdin)
        if note is not None:
            note(msg_id)
        channels.send("shell", frames)
        return execution

    def subscribe(self, consumer: Consumer) -> Callable[[], None]:
        """Call `consumer` with every whole message of this kernel, from now on.

        These include messages that no cell of ours has caused: comms, and messages without a parent. Headers, metadata
        and buffers are complete. Return a function that ends the subscription.
        """
        self._intake.consumers.add(consumer)
        return functools.partial(self._intake.consumers.discard, consumer)

    async def interrupt(self, cause: str | None = "interrupted") -> None:
        """Interrupt the running cell and its subprocesses. If it then fails, its outcome has `cause`.

        Returns when the kernel has answered, which one that is stuck never does. Only the cell that runs now can be
        hit, if the caller submits no other before the return. Cancelling it is safe. Raises `KernelBridgeError`.
        """
        running = self._table.running
        if running is None or self.died.done():
            return
        running.cause = cause
        await wait_interruptible(running, self.died)
        if self._table.running is not running:
            return
        if not self._answers_interrupts:
            await self._process.signal(signal.SIGINT)
            return
        answer = self._requests.begin("control", "interrupt_request", {})
        try:
            await asyncio.wait({answer}, timeout=_INTERRUPT_GRACE)
            # Code that holds the interpreter's lock, such as a regular expression, also prevents the answer.
            if not answer.done() and self._table.running is running:
                await self._process.signal(signal.SIGINT)
            await answer
        finally:  # the requests that a kernel ignores must not fill the table
            self._requests.forget([answer])

    async def interrupt_group(self) -> None:
        """Send SIGINT to the process group, without asking the kernel. Raises `KernelBridgeError`.

        Our hooks also interrupt a cell that ignores SIGINT or has a handler of its own.
        """
        if self._table.running is not None and not self._exited.done():
            if self.has_hooks:
                self._requests.forget([self._requests.begin("control", "interrupt_request", {"kernelbridge": "force"})])
            await self._process.signal(signal.SIGINT)

    def reply_input(self, value: str) -> None:
        """Send a line of input to the cell that waits for it. Raises `KernelError` if the kernel is dead."""
        channels, content = self._alive(), {"status": "ok", "value": value}
        channels.send("stdin", self._codec.request("input_reply", content, parent=self._table.take_question())[1])

    def withdraw_question(self) -> None:
        """Forget the question of the running cell, which nobody will answer."""
        self._table.take_question()

    async def kill(self) -> None:
        """Kill the kernel and the processes of its session; `died` follows. Raises `KernelBridgeError`."""
        await self._process.kill()

    def give_up(self, execution: Execution) -> None:
        """End one execution that the kernel has finished, but whose reply was lost by an interrupt."""
        self._table.end(execution, end_causes.REPLY_LOST)

    def end_pending(self, why: Ended) -> None:
        """End every pending execution with its output so far, and the cause."""
        self._table.end_all(why)

    async def aclose(self) -> None:
        """Kill the kernel, end pending executions with `session_closed`, and release everything. Idempotent.

        All callers wait for the same close, which continues if one is cancelled. If a step fails, the others are done
        all the same, its error is raised, and another call tries again.
        """
        if self._close is None or (self._close.done() and (self._close.cancelled() or self._close.exception())):
            self._closing = True
            self._close = asyncio.get_running_loop().create_task(self._close_all())
        await asyncio.shield(self._close)

    async def leave(self) -> None:
        """Release everything but leave the kernel running for another server; pending executions get no outcome."""
        self._closing = True
        self._disconnect()
        await self._end_tasks(grace=0)
        self._sockets.release()

    async def _close_all(self) -> None:
        async with contextlib.AsyncExitStack() as steps:  # run from the last to the first
            steps.push_async_callback(self._sockets.aclose)
            steps.push_async_callback(self._end_tasks)
            steps.push_async_callback(self._process.aclose)
            steps.callback(self._disconnect)
            self._requests.end()
            self.end_pending(end_causes.SESSION_CLOSED)

    async def _end_tasks(self, *, grace: float = _EXIT_GRACE) -> None:
        if not self.died.done():
            await asyncio.wait({self.died}, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- start --------------------------------------------------------------------

    async def _prepare(self, *, hooks: bool) -> None:
        """Connect to the kernel, wait until it answers, and install the hooks; or wait for `died`."""
        await wait_bound(self._sockets, self._exited)
        if self._exited.done():
            await asyncio.wait({self.died})
            return
        self._sockets.open()
        hooks = hooks and self.spec.language == "python"
        self._connect()
        info = await wait_heard(self._requests, self._iopub_seen)
        if info is None:
            await asyncio.wait({self.died})
            return
        self.help.subshells = "kernel subshells" in (info.supported_features or ())
        if hooks:
            self.has_hooks = await install_hooks(self._requests)
        self._process_output.take()
        self._ready = True

    def _connect(self) -> None:
        self._channels = Channels(
            {channel: self._sockets.endpoint(channel) for channel in PORTS},
            routing_id=self._routing_id,
            received=self._intake.received,
            lost=self._lost,
            stuck=lambda channel: self._end_faulty(f"it stopped reading its {channel} channel"),
            max_message=self._max_message,
        )

    # -- what the kernel sends ------------------------------------------------------

    def _handle(self, channel: str, message: wire.Message) -> Generator[None, None, None]:
        """Handle a message of a channel; yields often. Raises `BadFrame`."""
        if self._fault is not None:
            return  # the message was read before the channels were closed
        if channel == "iopub":
            self._iopub_seen.set()
            yield from self._table.handling_iopub(message)
        elif channel == "stdin":
            self._table.on_stdin(message)
        elif not self._requests.accept(channel, message) and channel == "shell":
            yield from self._table.handling_shell(message)

    def _on_late(self, text: str) -> None:
        # Before the first cell it is the kernel's own, such as the warning of a library at its import.
        if self._ready:
            self._late(text)
        else:
            self._process_output.add(text.encode("utf-8", "replace"))

    def _lost(self, channel: str, fault: str | None) -> None:
        if fault is not None:
            self._end_faulty(f"it {fault}")
        elif not self._exited.done() and not self._closing:
            self._spawn(self._end_disconnected(channel))

    async def _end_disconnected(self, channel: str) -> None:
        """End a kernel that has closed a channel and does not exit."""
        await asyncio.wait({self._exited}, timeout=_DISCONNECT_GRACE)
        if not self._exited.done():
            self._end_faulty(f"it closed its {channel} channel")

    def _end_faulty(self, fault: str) -> None:
        """End a kernel that broke the protocol; `fault` says how: it follows "because"."""
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
        """Wait for the end of the process, end what is pending, and set `died`, also if a step fails."""
        status = ExitStatus()
        try:
            await asyncio.wait({self._exited})
            if error := self._exited.exception():
                log.warning("kernel_status_unknown", error=repr(error))
            else:
                status = self._exited.result()
            if self._channels is not None and self._fault is None and not self._closing:
                await self._channels.drained(_DRAIN_TIMEOUT)
                if self.has_hooks:
                    await asyncio.wait({self._reader}, timeout=_DRAIN_TIMEOUT)
                    self._add_last_output(self._process_output.take())
            self._disconnect()
            self._table.end_all(end_causes.process_ended(status))
            self._requests.end()
            await asyncio.wait({self._reader}, timeout=_DRAIN_TIMEOUT)
        except Exception:  # a bug here must not leave callers waiting for `died`
            log.exception("kernel_watch_failed")
        finally:
            if not self.died.done():  # a cancelled caller that awaited it directly has cancelled it too
                self.died.set_result(status)

    def _add_last_output(self, text: str) -> None:
        """Add what the output pump of a dead kernel still had, such as the report of `faulthandler`."""
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


async def wait_interruptible(execution: Execution, died: asyncio.Future[Any]) -> None:
    """Wait until an interrupt will reach the user's code, or the kernel has died.

    A kernel ignores an interrupt while the cell is still in its queue, and runs the cell afterwards. IPython's own
    preparations swallow an interrupt or are cut short by it (our hooks keep it until they are over).
    """
    if execution.started_at is None:
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        execution.on_started = lambda: begun.set_result(None)
        await asyncio.wait({begun, died}, timeout=BEGIN_GRACE, return_when=asyncio.FIRST_COMPLETED)
    if execution.started_at is not None and (left := execution.started_at + _PREPARATION - time.monotonic()) > 0:
        await asyncio.wait({died}, timeout=left)
