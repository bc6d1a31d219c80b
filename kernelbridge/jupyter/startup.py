"""What happens between a kernel's process and its first cell, and why it did not get that far."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import structlog

from kernelbridge.errors import KernelError, SandboxError
from kernelbridge.jupyter import wire
from kernelbridge.jupyter.channels import Channels
from kernelbridge.jupyter.connection import SocketDirectory
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.jupyter.launch import hooks_failure, hooks_request, hooks_source
from kernelbridge.jupyter.requests import RequestTable
from kernelbridge.runtimes.contract import NO_ROOM, ExitStatus, Process, Sandbox

log = structlog.get_logger(__name__)

_BIND_POLL = 0.005
_TAIL = 4096
_DROPPED_AFTER = 2.0
"""Seconds until a request without an answer is looked into."""
_KEPT = 1 << 16
"""Bytes of it that are kept: as many as a dead kernel's pump writes (`guest/pump.py`)."""


class OwnOutput:
    """The end of what the process itself prints: why a start failed, or the last words of a kernel that died."""

    def __init__(self) -> None:
        self._end = bytearray()

    def add(self, data: bytes) -> None:
        """Take what it printed."""
        self._end += data
        del self._end[:-_KEPT]

    async def read(self, process: Process) -> None:
        """Take all that it prints."""
        while data := await process.read():
            self.add(data)

    def tail(self) -> str:
        """Quote the end of it; empty when there is nothing."""
        text = self._end[-_TAIL:].decode("utf-8", "replace").strip()
        return f"the last it printed: {text}" if text else ""

    def take(self) -> str:
        """Return what there is since the last call, and forget it."""
        text = self._end.decode("utf-8", "replace")
        self._end.clear()
        return text


def why_not_started(fault: str, status: ExitStatus | None, said: str) -> str:
    """Give the reason why a kernel did not start, and what to do; `said` quotes what it printed, if it did."""
    if status is not None and status.oom:
        return (
            "the session's memory ran out while it started; end what uses it, remove large files from /tmp, which is"
            " memory, or open the session with more (`limits`)"
        )
    if wants_processes(said):
        return f"{fault}: {NO_ROOM}; {said}"
    return f"{fault}; {said or 'it printed nothing'}"


async def with_room(error: KernelError, sandbox: Sandbox) -> KernelError:
    """Give the error of a kernel that did not start; with the reason, if there was no room for its threads.

    Not every program that ends for want of a thread says so.
    """
    with contextlib.suppress(SandboxError):
        if NO_ROOM not in error.reason and await sandbox.crowded():
            return KernelError(error.message, f"{NO_ROOM}; {error.reason}")
    return error


async def in_time(
    work: asyncio.Task[None],
    died: asyncio.Future[ExitStatus],
    timeout: float,  # noqa: ASYNC109 - giving up has a text of its own
    own_output: OwnOutput,
    *,
    fault: Callable[[], str | None],
) -> None:
    """Wait until a kernel has started. Raises `KernelError` that says what it did instead.

    `fault` gives what it did wrong, if it was ended for that.
    """
    first: set[asyncio.Future[Any]] = {work, died}
    try:
        await asyncio.wait(first, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            status = died.result()
            said = own_output.tail() or "it printed nothing; see that the image's kernel works"
            reason = why_not_started(f"{fault() or 'its process ended'} ({status})", status, said)
            raise KernelError("The kernel did not start", reason)
        if not work.done():
            raise KernelError(
                "The kernel did not start",
                why_not_started(f"it did not answer within {timeout:g} s", None, own_output.tail()),
            )
        await work
    finally:
        # What it would fail with from here on is of no interest: it is not to go on behind a start that is over.
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def until_bound(directory: SocketDirectory, exited: asyncio.Future[ExitStatus]) -> None:
    """Wait until the kernel has made its sockets, or has exited."""
    # Another process makes these files and tells nobody: this is the one thing that has to be polled.
    while not directory.bound() and not exited.done():
        await asyncio.wait({exited}, timeout=_BIND_POLL)


async def until_heard(
    requests: RequestTable, heard: asyncio.Event, *, on_control: bool = False
) -> wire.KernelInfo | None:
    """Ask a kernel for its information until its output is heard: a subscription takes effect some time after connect.

    `heard` is set by the caller when a message of iopub arrives. Return the kernel's information, or None if the kernel
    ends before that. Raises `BadFrame`.

    A kernel that starts is asked on shell: some kernels answer only a shutdown on control, and others drop what reaches
    control before they are up. All of them serve shell last. A kernel that may run a cell is asked `on_control`.
    """
    ask = requests.ask if on_control else requests.ask_until_answered
    pause = 0.01
    while (reply := await ask("control" if on_control else "shell", "kernel_info_request", {})) is not None:
        with contextlib.suppress(TimeoutError):  # it may answer every request and publish nothing
            async with asyncio.timeout(pause):
                await heard.wait()
        if heard.is_set():
            return wire.decode(reply.content, wire.KernelInfo)
        pause = min(2 * pause, 1.0)
    return None


async def install_hooks(requests: RequestTable, channels: Channels) -> bool:
    """Run `kernelbridge.guest` in a Python kernel, and say whether it is in it. Raises `BadFrame`.

    A kernel that it does not fit is left as it was.
    """
    reply = await _ask_in_order(requests, "execute_request", hooks_request(hooks_source()))
    failure = None if reply is None else hooks_failure(reply)
    if failure is not None:
        log.warning("kernel_hooks_failed", error=failure)
    elif reply is not None:
        channels.bound_output()  # its publisher loses nothing from here on
        return True
    return False


async def _ask_in_order(requests: RequestTable, msg_type: str, content: dict[str, Any]) -> wire.Message | None:
    """Ask on shell what may take long, and again if it was dropped; None when the kernel ends before it answers.

    Requests of one channel are answered in order: one was dropped if another that was sent later has its answer.
    """
    while True:
        answer = requests.begin("shell", msg_type, content)
        await asyncio.wait({answer}, timeout=_DROPPED_AFTER)
        if not answer.done():
            await requests.ask_until_answered("shell", "kernel_info_request", {})
        if answer.done():
            return answer.result()
        log.warning("kernel_dropped_request", request=msg_type)
        requests.forget([answer])
