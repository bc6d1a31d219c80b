"""A process in a container: a `docker exec` that can be signalled, resized and killed.

The engine does not say the pid that an exec has inside the container. So a small shell script goes first: it says
its pid, waits for the word to go (a caller that went away meanwhile leaves nothing behind), then becomes the program.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from docker.errors import APIError

from kernelbridge.errors import RuntimeUnavailable, SandboxError
from kernelbridge.runtimes.base import NO_MEMORY, NO_ROOM, ExitStatus
from kernelbridge.runtimes.docker_attach import Attached, AttachStream
from kernelbridge.runtimes.docker_control import LEADER_KILLED, OUTLIVED, ControlChannel, outlived
from kernelbridge.runtimes.docker_engine import GONE, Engine, explain, no_answer
from kernelbridge.runtimes.docker_exit import OomWatch, exit_status
from kernelbridge.runtimes.docker_tasks import Background
from kernelbridge.runtimes.terminals import no_terminals

_MARK = b"kernelbridge-exec "
_SIGNAL_BASE = 128
_NOISE = 64 << 10
"""Bytes of other output (a warning of the image's loader, say) that are skipped before the script's own."""
_DRAIN = 1.0
"""Seconds that the last output of a process may take after its container has ended."""
_ASK_AGAIN = 1.0
"""Seconds until an engine that did not answer is asked again what became of a process."""

_LAUNCH = r"""
set -f
_kb_mode=$1; shift
if [ "$_kb_mode" = merged ]; then exec 2>&1; fi
_kb_found=
case $1 in
*/*) if [ -f "$1" ] && [ -x "$1" ]; then _kb_found=1; fi ;;
*)  IFS=:
    for _kb in $PATH; do if [ -f "${_kb:-.}/$1" ] && [ -x "${_kb:-.}/$1" ]; then _kb_found=1; fi; done
    unset IFS ;;
esac
if [ -z "$_kb_found" ]; then echo "kernelbridge-exec absent"; exit 127; fi
echo "kernelbridge-exec $$"
read -r _kb || exit 1
if [ "$_kb" != go ]; then exit 1; fi
echo "kernelbridge-exec go"
if [ "$_kb_mode" = merged ]; then exec </dev/null; fi
exec "$@"
"""
"""Arguments: `merged` (stdout and stderr in one, no stdin) or `terminal`, then the program's argv."""


def launch_command(argv: Sequence[str], *, tty: bool) -> list[str]:
    """Give the argv of the exec for the argv of the program."""
    return ["/bin/sh", "-c", _LAUNCH, "sh", "terminal" if tty else "merged", *argv]


class Surroundings(Protocol):
    """What a process needs of its container."""

    @property
    def alive(self) -> bool:
        """Whether the container is believed to run."""
        ...

    @property
    def ending(self) -> bool:
        """Whether the container has ended, or is being removed."""
        ...

    @property
    def leaving(self) -> bool:
        """Whether the container is to be removed, and perhaps is not yet."""
        ...

    @property
    def control(self) -> ControlChannel:
        """What sends signals."""
        ...

    def forget(self, process: DockerProcess) -> None:
        """Take note that nothing more will be heard of a process."""
        ...


class DockerProcess:
    """A process in a container (`runtimes.base.Process`)."""

    def __init__(
        self, exec_id: str, *, engine: Engine, around: Surroundings, oom: OomWatch, background: Background, tty: bool
    ) -> None:
        self.exec_id = exec_id
        self.pid = 0
        self._engine = engine
        self._around = around
        self._oom = oom
        self._background = background
        self._tty = tty
        self._stream = AttachStream(framed=not tty, on_end=self._stream_ended)
        self._exit: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._started = False
        self._judged = False
        self._killed = False
        self._swept = False
        self._stranded = False
        """Whether nothing leads to its terminal any more, should it have one and live."""
        self._later: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = str(self._exit.result()) if self._exit.done() else "running"
        return f"<DockerProcess pid={self.pid} {state}>"

    async def start(self, attached: Attached, argv: Sequence[str], *, rows: int, cols: int) -> None:
        """Take over the connection and see the program started; raises `SandboxError`. On failure it is hung up."""
        try:
            async with asyncio.timeout(self._engine.timeout):
                await self._stream.connect(attached)
                self.pid = _pid(await self._next_mark(), argv[0])
                await self.resize(rows, cols)
                await self._stream.write(b"go\n")
                await self._next_mark()
        except TimeoutError as exc:
            self._stream.abort()
            raise no_answer("starting a program", self._engine.timeout) from exc
        except BrokenPipeError as exc:
            self._stream.abort()
            raise SandboxError(f"The program {argv[0]!r} cannot be started", "the engine hung up") from exc
        except BaseException:
            self._stream.abort()
            raise
        self._started = True
        if self._stream.ended:
            self._stream_ended()

    def rejoin(self, pid: int) -> None:
        """Stand for a process that an earlier server started: its connection ended with that server."""
        self.pid, self._started = pid, True
        self._stream.abort()  # and so it is asked whether it still runs

    @property
    def handle(self) -> str:
        """By which another server finds it: the exec, whose end the engine tells, and the process in it."""
        return f"{self.exec_id}:{self.pid}"

    async def read(self) -> bytes:
        """Give the next output; `b""` once it has ended."""
        return await self._stream.read()

    async def write(self, data: bytes) -> None:
        """Type `data` into its terminal; raises `BrokenPipeError` if it has none or has ended."""
        if not self._tty:
            raise BrokenPipeError("the process was started without a terminal: its stdin is empty")
        await self._stream.write(data)

    async def resize(self, rows: int, cols: int) -> None:
        """Set the size of its terminal."""
        if not self._tty or self._exit.done():
            return
        try:
            await self._engine.call(
                lambda api: api.exec_resize(self.exec_id, height=rows, width=cols), doing="resizing a terminal"
            )
        except APIError as exc:
            if exc.status_code not in GONE:
                raise SandboxError("The terminal cannot be resized", explain(exc)) from exc

    async def signal(self, signum: int) -> None:
        """Send `signum` to its process group."""
        if not self._exit.done() and self._around.alive:
            await self._around.control.signal_group(signum, self.pid)

    async def kill(self) -> None:
        """SIGKILL every process of its session; raises `SandboxError` if some outlived that."""
        if self._swept or not self._around.alive:
            return
        self._killed = True
        if self._around.leaving:
            return  # it ends with the container, as soon as the engine removes that
        result = await self._around.control.sweep(self.pid)
        if result == OUTLIVED:
            raise outlived()
        self._swept = True
        if result == LEADER_KILLED:
            # The engine says it some seconds later if another process holds on to the output.
            self.exited(_SIGNAL_BASE + signal.SIGKILL)

    async def wait(self) -> ExitStatus:
        """Return how it ended, when it has."""
        return await asyncio.shield(self._exit)

    async def aclose(self) -> None:
        """Kill its session and hang up."""
        try:
            await self.kill()
        finally:
            await self._stream.aclose()

    async def leave(self) -> None:
        """Hang up, and let it run."""
        self._judged = True
        await self._stream.aclose()

    def exited(self, code: int | None) -> None:
        """Learn from the engine that it has ended."""
        if self._judged:
            return
        self._judged = True
        if self._killed:
            self._settle(exit_status(code))
        else:
            self._oom.judge(exit_status(code), self._settle)

    def sandbox_ended(self, status: ExitStatus, *, drain: bool) -> None:
        """Learn that the container has ended; with `drain` its last output may still arrive."""
        self._judged = True
        self._settle(ExitStatus(signal=signal.SIGKILL, oom=status.oom, lost=not self._killed))
        if drain:
            asyncio.get_running_loop().call_later(_DRAIN, self._stream.abort)
        else:
            self._stream.abort()

    def engine_returned(self) -> None:
        """Learn that the engine was away: what it said meanwhile was missed."""
        if self._stream.ended and not self._judged:
            self._stranded = True
            self._ask()

    def _stream_ended(self) -> None:
        if not self._started:
            return
        if self._exit.done():
            self._around.forget(self)
        else:
            self._ask()

    def _ask(self) -> None:
        """Have the engine asked what became of it, until that answers."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if not self._judged:
            self._background.spawn(self._asked(), doing="asking how a process ended")

    async def _asked(self) -> None:
        try:
            await self._inspect()
            if self._tty and self._stranded and not self._judged:
                # It lives, but whoever uses it has to have another.
                await self.kill()
                self.exited(_SIGNAL_BASE + signal.SIGKILL)
        except RuntimeUnavailable:
            # An engine that hangs says nothing when it goes on, and what it has said while it was away is lost. By a
            # timer, and not in a loop: whoever closes the runtime waits for all that was begun.
            if self._around.alive and not self._around.leaving and not self._judged and self._later is None:
                self._later = asyncio.get_running_loop().call_later(_ASK_AGAIN, self._ask)

    def _settle(self, status: ExitStatus) -> None:
        if not self._exit.done():
            # The engine tells of the processes' ends before that of the container.
            lost = status.lost or (self._around.ending and status.signal == signal.SIGKILL and not self._killed)
            self._exit.set_result(replace(status, lost=lost))
            if self._stream.ended:
                self._around.forget(self)

    async def _inspect(self) -> None:
        """Ask how it ended. If it has only closed its output, the engine's `exec_die` event will tell."""
        try:
            state = await self._engine.call(lambda api: api.exec_inspect(self.exec_id), doing="inspecting a process")
        except APIError as exc:
            # The container was removed, which its own event tells; or this is another engine, which knows no exec.
            if exc.status_code not in GONE:
                raise
            if self._around.alive and await self._around.control.is_alive(self.pid) is False:
                self.exited(None)
            return
        if not state["Running"]:
            self.exited(state["ExitCode"])

    async def _next_mark(self) -> bytes:
        """Read what the launch script says next; raises `SandboxError` with what came in its place."""
        seen = b""
        while len(seen) < _NOISE and (data := await self._stream.read()):
            seen += data  # with what the program has written already, perhaps: that may be a lot
            start = seen.find(_MARK)
            end = seen.find(b"\n", start) if start >= 0 else -1
            if end >= 0:
                self._stream.unread(seen[end + 1 :])
                return seen[start + len(_MARK) : end].strip()
        said = " ".join(seen.decode("utf-8", "replace").split())
        raise SandboxError("A program cannot be started in the sandbox", _why_not(said))


def _pid(said: bytes, program: str) -> int:
    if said == b"absent":
        raise SandboxError(f"The program {program!r} cannot be started", "the sandbox has no such executable file")
    return int(said)


def _why_not(said: str) -> str:
    lower = said.lower()
    if "/dev/ptmx" in lower and "no space left" in lower:
        return no_terminals()
    if "resource temporarily unavailable" in lower or "cannot fork" in lower:
        return NO_ROOM
    if "cannot allocate memory" in lower:
        return NO_MEMORY
    return said[:500] or "it has ended"
