"""One local sandbox: the process tree that was launched, its agent, and the processes in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import structlog

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.client import START_SECONDS, AgentClient
from kernelbridge.runtimes.agent.directory import AgentDirectory
from kernelbridge.runtimes.agent.process import AgentProcess
from kernelbridge.runtimes.contract import ExitStatus
from kernelbridge.runtimes.facts import Facts
from kernelbridge.runtimes.local.cgroups import Cgroup
from kernelbridge.runtimes.local.launcher import Launched
from kernelbridge.runtimes.local.oom_notice import KillsSeen
from kernelbridge.runtimes.local.terminals import limit_terminals

log = structlog.get_logger(__name__)

DESTROY_SECONDS = 15.0
_LAST_WORDS = 5.0
"""How long a tree whose agent cannot be reached has to end by itself, and so to say why."""
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
        directory: AgentDirectory,
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
        self._directory = directory
        self._agent: AgentClient | None = None
        """Once it has been reached."""
        self._ending = False
        self._isolated = isolated
        self._cgroup = cgroup
        # Without isolation it is the agent that ends everything when the server is gone: it must not be frozen.
        self._freezer = cgroup if isolated and cgroup is not None and cgroup.freezes else None
        self._on_ended = on_ended
        self._release = release
        self._left_over = False
        """Something of it could not be removed when it ended."""
        self._turn = asyncio.Lock()
        self._running = asyncio.Event()
        self._running.set()
        self._printed = ""
        self._pidfd = -1
        self._said = b""
        self._child: asyncio.Future[int] = self._loop.create_future()
        """The pid of its first process, or 0 if that is not told."""
        self._ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._tell_oom: Callable[[], None] = lambda: None
        self._kills = KillsSeen()
        self._notice = None if cgroup is None else cgroup.oom_notice()
        if self._notice is not None:
            self._loop.add_reader(self._notice.fd, self._on_memory)
        self._loop.add_reader(launched.status, self._on_status)

    def __repr__(self) -> str:
        state = str(self._ended.result()) if self._ended.done() else "running" if self._running.is_set() else "paused"
        return f"<LocalSandbox {self.id} {state}>"

    async def until_ready(self) -> None:
        """Wait for the agent; raises `SandboxError` saying what was printed instead. The caller then destroys it."""
        try:
            async with asyncio.timeout(START_SECONDS):
                control = await self._directory.connect(self._ended)
            self._agent = AgentClient(
                control, self.facts, judge=self._judge, ooms=self.oom_kills, on_lost=lambda _: self._end()
            )
            await self._agent.until_ready()
            self._agent.outlive(0)
        except TimeoutError as exc:
            raise self._not_started(f"no answer within {START_SECONDS:.0f} seconds") from exc
        except SandboxError as exc:
            await asyncio.wait({self._ended}, timeout=_LAST_WORDS)
            raise self._not_started(str(self._ended.result()) if self._ended.done() else exc.reason) from exc

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
        name: str = "",
    ) -> AgentProcess:
        """Start a process; raises `SandboxError`."""
        await self._until_running()
        environment = {**self.facts.env, **({"TERM": "xterm-256color"} if tty else {}), **(env or {})}
        cwd = cwd or self.workspace_path
        return await self.agent.spawn(argv, env=environment, cwd=cwd, tty=tty, rows=rows, cols=cols, name=name)

    @property
    def agent(self) -> AgentClient:
        """The connection to its first process; raises `SandboxError` before `until_ready`."""
        if self._agent is None:
            raise SandboxError("The sandbox cannot be used", "it is still being started")
        return self._agent

    async def rejoin(self, handle: str) -> AgentProcess:
        """Give a program that an earlier server started; raises `SandboxError`."""
        for known in await self.agent.known():
            if str(known.program) == handle:
                return await self.agent.attach(known)
        raise SandboxError("A process cannot be found again", f"{handle[:100]!r} is none that runs")

    async def end_others(self, *, spare: int) -> None:
        """SIGKILL all programs but the one with that pid, with all that they started; raises `SandboxError`."""
        for known in await self.agent.known():
            if known.pid != spare:
                await (await self.agent.attach(known)).aclose()

    async def sweep(self, mark: str, *, spare: int = 0) -> None:
        """Do nothing: `Process.kill` and `prune` have ended it."""

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
            if self._gone():
                raise SandboxError("The sandbox cannot be paused", f"it is gone: {self.agent.why}")
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
                elif not self._running.is_set() and not self._gone():
                    await self.agent.resume()
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
            return await self.agent.pause()
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
        self._ending = True
        if self._isolated and self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif self._isolated or self._agent is None:
            # Not told yet which process is PID 1 inside: the monitor's death takes it along.
            self._launched.popen.kill()
        if self._agent is not None:
            self._agent.end()
        self._thaw()

    def _gone(self) -> bool:
        return self._ending or self._ended.done()

    def _thaw(self) -> None:
        """Let what was killed end, and the monitor see it."""
        if self._freezer is not None:
            with contextlib.suppress(OSError):  # then `destroy` says what did not end
                self._freezer.thaw()

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
        if not self._child.done():
            self._child.set_result(0)
        status = self._exit_status(returncode)
        if self._agent is not None:
            self._agent.ended(status)
        self._directory.close()
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

    # -- out of memory ------------------------------------------------------------

    def _judge(self, status: ExitStatus, ooms: int, then: Callable[[ExitStatus], None]) -> None:
        # A shell whose command was killed says so in its exit code; the kernel says for want of what.
        killed = status.signal == signal.SIGKILL or status.code == _SHELL_SIGNALLED + signal.SIGKILL
        oom = killed and self.oom_kills() > max(ooms, self._kills.over(self._loop.time()))
        then(replace(status, oom=oom))

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
