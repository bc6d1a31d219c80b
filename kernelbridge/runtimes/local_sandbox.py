"""One local sandbox: the process tree that was launched, its agent, and the processes in it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.base import ExitStatus
from kernelbridge.runtimes.cgroups import Cgroup
from kernelbridge.runtimes.facts import Facts
from kernelbridge.runtimes.local_agent import (
    AgentLink,
    Answer,
    Done,
    Ended,
    Kill,
    Killed,
    Pause,
    Refused,
    Resume,
    Signal,
    Spawn,
    Started,
    Sweep,
)
from kernelbridge.runtimes.local_launcher import Launched, memory_file
from kernelbridge.runtimes.local_process import LocalProcess, open_terminal
from kernelbridge.runtimes.local_terminals import limit_terminals
from kernelbridge.runtimes.oom_notice import KillsSeen

log = structlog.get_logger(__name__)

START_SECONDS = 30.0
"""How long the agent has to come up, or to start a process; a machine that needs longer is not usable."""
DESTROY_SECONDS = 15.0
_STATUS_CHUNK = 1 << 16
_LOOKS = 20
_LOOK_SECONDS = 0.02
_SHELL_SIGNALLED = 128
"""A shell's (and bubblewrap's) exit code for something that a signal ended is this plus the signal."""


class _ChildPid(msgspec.Struct):
    """The one document of bubblewrap's `--json-status-fd` that matters here."""

    pid: int = msgspec.field(name="child-pid", default=0)


class LocalSandbox:
    """A running local sandbox; see `base.Sandbox`. Owns all of `launched`.

    The pipe that bubblewrap (or the bare agent) holds ends with the whole tree: that is the one
    sign of its end that is believed, whatever the agent says or leaves unsaid.
    """

    def __init__(
        self,
        sandbox_id: str,
        launched: Launched,
        facts: Facts,
        *,
        workspace_path: str,
        sockets_path: str,
        cgroup: Cgroup | None,
        isolated: bool,
        on_ended: Callable[[], bool],
        release: Callable[[], bool],
    ) -> None:
        self.id = sandbox_id
        self.facts = facts
        self.workspace_path, self.sockets_path = workspace_path, sockets_path
        self._loop = asyncio.get_running_loop()
        self._launched = launched
        self._isolated = isolated
        self._cgroup = cgroup
        # Without isolation it is the agent that ends everything when the server is gone: it must not be frozen.
        self._freezer = cgroup if isolated and cgroup is not None and cgroup.freezes else None
        self._on_ended = on_ended
        self._release = release
        self._left_over = False
        """Something of it could not be removed when it ended."""
        self._ids = itertools.count(1)
        self._processes: dict[int, LocalProcess] = {}
        self._asked: dict[int, asyncio.Future[bool]] = {}
        """Sweeps, pauses and resumes that the agent has not done yet."""
        self._turn = asyncio.Lock()
        self._running = asyncio.Event()
        self._running.set()
        self._printed = ""
        self._pidfd = -1
        self._said = b""
        self._child: asyncio.Future[int] = self._loop.create_future()
        """The pid of its first process, or 0 if that is not told."""
        self._why = "it has ended"
        self._ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._tell_oom: Callable[[], None] = lambda: None
        self._kills = KillsSeen()
        self._notice = None if cgroup is None else cgroup.oom_notice()
        if self._notice is not None:
            self._loop.add_reader(self._notice.fd, self._on_memory)
        self._link = AgentLink(launched.control, on_answer=self._on_answer, on_lost=self._on_lost)
        self._loop.add_reader(launched.status, self._on_status)

    def __repr__(self) -> str:
        state = str(self._ended.result()) if self._ended.done() else "running" if self._running.is_set() else "paused"
        return f"<LocalSandbox {self.id} {state}>"

    async def until_ready(self) -> None:
        """Wait for the agent; raises `SandboxError` saying what was printed instead. The caller then destroys it."""
        try:
            async with asyncio.timeout(START_SECONDS):
                ready = await self._link.ready
        except TimeoutError as exc:
            raise self._not_started(f"no answer within {START_SECONDS:.0f} seconds") from exc
        if not ready:
            raise self._not_started(str(await self.wait()))

    async def limit_terminals(self, ptys: int) -> None:
        """Limit its terminals; before anything is started in it. Where that cannot be, it is logged."""
        problem: str | None = "its first process is not known"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                pid = await asyncio.shield(self._child)
            if pid:
                problem = await asyncio.to_thread(limit_terminals, pid, ptys)
        if problem:
            log.warning("terminals_not_limited", sandbox=self.id, reason=problem)

    # -- the contract -----------------------------------------------------------

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
    ) -> LocalProcess:
        """Start a process; raises `SandboxError`."""
        await self._until_running()
        if self._link.closed:
            raise SandboxError(f"{argv[0]!r} could not be started", f"the sandbox is gone: {self._why}")
        environment = {**self.facts.env, **({"TERM": "xterm-256color"} if tty else {}), **(env or {})}
        # The standard library's JSON, because it carries file names that are not UTF-8.
        body = json.dumps({"argv": list(argv), "env": environment, "cwd": cwd or self.workspace_path})
        number = next(self._ids)
        with contextlib.ExitStack() as undo:
            body_fd = memory_file("spawn", body.encode())
            undo.callback(os.close, body_fd)
            ours, theirs = self._open_output(rows, cols) if tty else os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, theirs)
            undo.callback(os.close, ours)
            process = LocalProcess(
                ours,
                tty=tty,
                ooms=self.oom_kills(),
                post_signal=lambda signum: self._link.post(Signal(number, signum)),
                post_kill=lambda: self._link.post(Kill(number)),
            )
            undo.pop_all()
        self._processes[number] = process
        self._link.post(Spawn(number, tty), (body_fd, theirs))
        try:
            async with asyncio.timeout(START_SECONDS):
                await process.until_started(argv[0])
        except TimeoutError as exc:
            raise SandboxError(
                f"{argv[0]!r} could not be started in the sandbox", f"no answer within {START_SECONDS:.0f} seconds"
            ) from exc
        return process

    async def rejoin(self, handle: str) -> LocalProcess:
        """Refuse: no process outlives the server that started it."""
        raise SandboxError("A process cannot be found again", f"{handle[:100]!r} ended with the server")

    async def end_others(self, *, spare: int) -> None:
        """End nothing: no process outlives the server that started it."""

    async def sweep(self, mark: str, *, spare: int = 0) -> None:
        """SIGKILL whatever has `mark`; raises `SandboxError` if some outlived that."""
        await self._until_running()
        if not await self._ask(lambda number: Sweep(number, mark, spare)):
            raise SandboxError(
                "Processes in the sandbox cannot be ended", "they start others faster; destroy the sandbox"
            )

    async def crowded(self) -> bool | None:
        """Look at its control group."""
        return None if self._cgroup is None else self._cgroup.crowded()

    async def starves(self, pid: int) -> bool:
        """Look at the shell from outside."""
        return self._cgroup is not None and self._cgroup.starves(pid)

    def oom_kills(self) -> int:
        """Count what the kernel says of its control group."""
        return self._cgroup.oom_kills() if self._cgroup is not None else 0

    def watch_memory(self, tell: Callable[[], None]) -> None:
        """Call `tell` when that grows."""
        self._tell_oom = tell

    async def pause(self) -> None:
        """Freeze its control group, or stop its processes one by one; raises `SandboxError`."""
        async with self._turn:
            if self._link.closed:
                raise SandboxError("The sandbox cannot be paused", f"it is gone: {self._why}")
            if not self._running.is_set():
                return
            self._running.clear()
            try:
                still = await self._stand_still()
            except OSError as exc:
                self._running.set()
                raise SandboxError("The sandbox cannot be paused", f"{exc.strerror}: {exc.filename}") from exc
            if not still:
                self._running.set()
                raise SandboxError("The sandbox cannot be paused", "some of its processes did not stop in time")
            if self._gone():
                self._thaw()  # it was being destroyed meanwhile, and its monitor must see that

    async def resume(self) -> None:
        """Let its processes go on."""
        async with self._turn:
            try:
                if self._freezer is not None:
                    self._freezer.thaw()
                elif not self._running.is_set():
                    await self._ask(Resume)
            except OSError as exc:
                raise SandboxError("The sandbox cannot be resumed", f"{exc.strerror}: {exc.filename}") from exc
            self._running.set()

    def watch_pauses(self, told: Callable[[bool], None]) -> None:
        """Do nothing: nobody else pauses a process tree."""

    async def _until_running(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._running.wait()
        except TimeoutError as exc:
            raise SandboxError("The sandbox is paused", f"nobody resumed it within {START_SECONDS:.0f} s") from exc

    async def _stand_still(self) -> bool:
        if self._freezer is None:
            return await self._ask(Pause)
        return await asyncio.to_thread(self._freezer.freeze)

    async def wait(self) -> ExitStatus:
        """Return how the sandbox ended."""
        return await asyncio.shield(self._ended)

    async def destroy(self) -> None:
        """End everything in it."""
        self._end()
        try:
            async with asyncio.timeout(DESTROY_SECONDS):
                await self.wait()
        except TimeoutError:
            monitor = self._launched.popen
            monitor.kill()
            raise SandboxError(
                f"Sandbox {self.id} did not end",
                f"its processes did not die within {DESTROY_SECONDS:.0f} seconds; see process {monitor.pid}",
            ) from None
        if self._left_over:
            self._left_over = not await asyncio.to_thread(self._release)

    # -- its end ----------------------------------------------------------------

    def _end(self) -> None:
        if self._ended.done():
            return
        if self._isolated and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif self._isolated:
            # Not told yet which process is PID 1 inside: the monitor's death takes it along.
            self._launched.popen.kill()
        self._link.close()
        self._thaw()

    def _gone(self) -> bool:
        return self._link.closed

    def _thaw(self) -> None:
        """Let what was killed end, and the monitor see it."""
        if self._freezer is not None:
            with contextlib.suppress(OSError):  # then `destroy` says what did not end
                self._freezer.thaw()

    def _on_lost(self, reason: str) -> None:
        self._why = reason
        self._end()

    def _on_status(self) -> None:
        try:
            data = os.read(self._launched.status, _STATUS_CHUNK)
        except BlockingIOError:
            return
        if data:
            self._note_child(data)
            return
        self._loop.remove_reader(self._launched.status)
        self._finish(self._launched.popen.wait())

    def _note_child(self, data: bytes) -> None:
        if self._child.done():
            return
        self._said += data  # it comes in pieces
        line, newline, _ = self._said.partition(b"\n")
        if not newline:
            return
        with contextlib.suppress(msgspec.MsgspecError):
            pid = msgspec.json.decode(line, type=_ChildPid).pid
            self._child.set_result(pid)
            if pid and self._pidfd < 0 and hasattr(os, "pidfd_open"):
                with contextlib.suppress(ProcessLookupError):
                    self._pidfd = os.pidfd_open(pid)

    def _finish(self, returncode: int) -> None:
        self._link.close()
        if not self._child.done():
            self._child.set_result(0)
        status = self._exit_status(returncode)
        error = SandboxError("The sandbox is gone", f"{self._why} ({status})")
        for process in list(self._processes.values()):
            process.on_lost(error, ExitStatus(signal=signal.SIGKILL, oom=status.oom, lost=True))
        self._processes.clear()
        for number in list(self._asked):
            self._on_done(Done(number, all=True))
        self._running.set()
        self._printed = self._launched.printed()
        for fd in (self._launched.status, self._launched.stderr, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._pidfd = -1
        if self._notice is not None:
            self._loop.remove_reader(self._notice.fd)
            self._notice.close()
            self._notice = None
        self._left_over = not self._on_ended()
        self._ended.set_result(status)

    def _exit_status(self, returncode: int) -> ExitStatus:
        if returncode < 0:
            number: int | None = -returncode
        else:
            number = returncode - _SHELL_SIGNALLED if returncode > _SHELL_SIGNALLED else None
        oom = number == signal.SIGKILL and self.oom_kills() > self._kills.over(self._loop.time())
        return ExitStatus(signal=number, oom=oom) if number else ExitStatus(code=returncode)

    def _not_started(self, reason: str) -> SandboxError:
        return SandboxError("The sandbox could not be started", self._printed or reason)

    # -- its processes ----------------------------------------------------------

    def _open_output(self, rows: int, cols: int) -> tuple[int, int]:
        return open_terminal(self._link.ptmx, rows, cols, uid=self.facts.uid, gid=self.facts.gid)

    async def _ask(self, request: Callable[[int], Pause | Resume | Sweep]) -> bool:
        """Have the agent do something to all processes; true if the sandbox is gone."""
        if self._link.closed:
            return True
        number = next(self._ids)
        done: asyncio.Future[bool] = self._loop.create_future()
        self._asked[number] = done
        self._link.post(request(number))
        return await done

    def _on_done(self, answer: Done) -> bool:
        asked = self._asked.pop(answer.id, None)
        if asked is not None and not asked.done():  # its caller may have been cancelled
            asked.set_result(answer.all)
        return asked is not None

    def _on_answer(self, answer: Answer) -> bool:
        if isinstance(answer, Done):
            return self._on_done(answer)
        process = self._processes.get(answer.id)
        if process is None:
            return False
        match answer:
            case Started():
                expected = process.on_started(answer.pid)
            case Refused():
                expected = process.on_refused(answer)
            case Ended():
                expected = process.pid > 0 and process.on_ended(self._process_status(answer, process))
            case Killed():
                expected = process.on_killed()
        if process.finished:
            del self._processes[answer.id]
        return expected

    def _process_status(self, ended: Ended, process: LocalProcess) -> ExitStatus:
        # A shell whose command was killed says so in its exit code; the kernel says for want of what.
        killed = ended.signal == signal.SIGKILL or ended.code == _SHELL_SIGNALLED + signal.SIGKILL
        oom = killed and self.oom_kills() > max(process.ooms, self._kills.over(self._loop.time()))
        if ended.signal is not None:
            return ExitStatus(signal=ended.signal, oom=oom)
        return ExitStatus(code=ended.code, oom=oom)

    def _on_memory(self) -> None:
        if self._notice is not None:
            self._notice.take()
            self._look_at_memory(_LOOKS)

    def _look_at_memory(self, looks: int) -> None:
        """See whether something was killed: version 1 of the interface tells before it counts."""
        if self._kills.seen(self.oom_kills(), self._loop.time()):
            self._tell_oom()
        elif looks and not self._ended.done():
            self._loop.call_later(_LOOK_SECONDS, self._look_at_memory, looks - 1)
