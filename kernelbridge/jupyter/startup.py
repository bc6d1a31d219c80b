"""The steps from a kernel's process to its first cell, and the error of a kernel that did not start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import structlog

from kernelbridge.errors import KernelError, SandboxError
from kernelbridge.jupyter import wire
from kernelbridge.jupyter.connection import KernelSockets
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.jupyter.launch import hooks_failure, hooks_request
from kernelbridge.jupyter.requests import RequestTable
from kernelbridge.runtimes.contract import NO_ROOM, ExitStatus, Process, Sandbox

log = structlog.get_logger(__name__)

_BIND_POLL = 0.005
_TAIL = 4096
_KEPT = 1 << 16
"""Bytes of the process's output that are kept: as many as the pump of a dead kernel writes (`guest/kernel/pump.py`)."""


class ProcessOutput:
    """The end of what a kernel's process prints, which says why a start failed or the kernel died."""

    def __init__(self) -> None:
        self._end = bytearray()

    def add(self, data: bytes) -> None:
        """Add output."""
        self._end += data
        del self._end[:-_KEPT]

    async def read(self, process: Process) -> None:
        """Add all output of the process, until its end."""
        while data := await process.read():
            self.add(data)

    def tail(self) -> str:
        """Return a quote of the last output, or an empty text if there is none."""
        text = self._end[-_TAIL:].decode("utf-8", "replace").strip()
        return f"its last output: {text}" if text else ""

    def take(self) -> str:
        """Return the kept output, and forget it."""
        text = self._end.decode("utf-8", "replace")
        self._end.clear()
        return text


def why_not_started(fault: str, status: ExitStatus | None, quote: str) -> str:
    """Return why a kernel did not start, and what to do. `quote` is its last output, or empty."""
    if status is not None and status.oom:
        return (
            "the session's memory was exhausted while it started; end programs that use it, remove large files from"
            " /tmp, which is memory, or open the session with more (`limits`)"
        )
    if wants_processes(quote):
        return f"{fault}: {NO_ROOM}; {quote}"
    return f"{fault}; {quote or 'it printed nothing'}"


async def explained(error: KernelError, sandbox: Sandbox) -> KernelError:
    """Return the error of a kernel that did not start, with the reason if the sandbox had no room for its threads.

    Not every program that ends because it cannot start a thread reports that.
    """
    with contextlib.suppress(SandboxError):
        if NO_ROOM not in error.reason and await sandbox.crowded():
            return KernelError(error.message, f"{NO_ROOM}; {error.reason}")
    return error


async def wait_started(
    work: asyncio.Task[None],
    died: asyncio.Future[ExitStatus],
    timeout: float,  # noqa: ASYNC109 - its error has a text of its own
    output: ProcessOutput,
    *,
    fault: Callable[[], str | None],
) -> None:
    """Wait until `work`, the start of a kernel, has ended. Raises `KernelError` with the reason if the start fails.

    `fault` returns what the kernel did wrong, if it was ended for that. In any case `work` has ended afterwards.
    """
    first: set[asyncio.Future[Any]] = {work, died}
    try:
        await asyncio.wait(first, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            status = died.result()
            quote = output.tail() or "it printed nothing; check that the kernel of the image works"
            reason = why_not_started(f"{fault() or 'its process ended'} ({status})", status, quote)
            raise KernelError("The kernel did not start", reason)
        if not work.done():
            raise KernelError(
                "The kernel did not start",
                why_not_started(f"it did not answer within {timeout:g} s", None, output.tail()),
            )
        await work
    finally:
        # Its errors from here on do not matter: it must not continue after the end of the start.
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def wait_bound(sockets: KernelSockets, exited: asyncio.Future[ExitStatus]) -> None:
    """Wait until the kernel has made its sockets, or has exited."""
    # Polled, because the kernel makes these files and announces them to nobody.
    while not sockets.bound() and not exited.done():
        await asyncio.wait({exited}, timeout=_BIND_POLL)


async def wait_heard(
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


async def install_hooks(requests: RequestTable) -> bool:
    """Run the hooks (`guest/kernel/hooks.py`) in a Python kernel. Return whether they are in it. Raises `BadFrame`.

    If they fail, the kernel is used without them.
    """
    # A kernel that starts may drop the request. If it is sent twice, the hooks run once.
    reply = await requests.ask_until_answered("shell", "execute_request", hooks_request())
    failure = None if reply is None else hooks_failure(reply)
    if failure is not None:
        log.warning("kernel_hooks_failed", error=failure)
    return reply is not None and failure is None
