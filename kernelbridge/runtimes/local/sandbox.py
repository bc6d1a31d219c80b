"""One local sandbox: the process tree that was launched, its agent, and the processes in it."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import structlog

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.client import START_SECONDS, AgentClient
from kernelbridge.runtimes.agent.directory import AgentDirectory
from kernelbridge.runtimes.agent.process import AgentProcess
from kernelbridge.runtimes.agent.terminal import AgentTerminal
from kernelbridge.runtimes.contract import ExitStatus, Terminal
from kernelbridge.runtimes.facts import Facts
from kernelbridge.runtimes.local.cgroups import Cgroup
from kernelbridge.runtimes.local.oom_notice import KillsSeen
from kernelbridge.runtimes.local.terminals import limit_terminals
from kernelbridge.runtimes.local.tree import Tree

log = structlog.get_logger(__name__)

DESTROY_SECONDS = 15.0
_LAST_WORDS = 5.0
"""How long a tree whose agent cannot be reached has to end by itself, and so to say why."""
_LOOKS = 20
_LOOK_SECONDS = 0.02
_SHELL_SIGNALLED = 128
"""A shell's (and bubblewrap's) exit code for something that a signal ended is this plus the signal."""


class LocalSandbox:
    """A running local sandbox; see `base.Sandbox`. Owns `tree`.

    The end of the tree is the one sign of its end that is believed, whatever the agent says or leaves unsaid.
    """

    def __init__(
        self,
        sandbox_id: str,
        tree: Tree,
        directory: AgentDirectory,
        facts: Facts,
        *,
        workspace_path: str,
        sockets_path: str,
        cgroup: Cgroup | None,
        on_ended: Callable[[], bool],
        on_left: Callable[[], None],
        release: Callable[[], bool],
    ) -> None:
        self.id = sandbox_id
        self.facts = facts
        self.workspace_path, self.sockets_path = workspace_path, sockets_path
        self._loop = asyncio.get_running_loop()
        self._tree = tree
        self._directory = directory
        self._agent: AgentClient | None = None
        """Once it has been reached."""
        self._ending = False
        self._cgroup = cgroup
        self._on_ended, self._on_left = on_ended, on_left
        self._release = release
        self._left_over = False
        """Something of it could not be removed when it ended."""
        self._turn = asyncio.Lock()
        self._running = asyncio.Event()
        self._running.set()
        self._ended: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._tell_oom: Callable[[], None] = lambda: None
        self._kills = KillsSeen()
        self._notice = None if cgroup is None else cgroup.oom_notice()
        if self._notice is not None:
            self._loop.add_reader(self._notice.fd, self._on_memory)
        tree.ended.add_done_callback(lambda ended: self._finish(ended.result()))

    def __repr__(self) -> str:
        state = str(self._ended.result()) if self._ended.done() else "running" if self._running.is_set() else "paused"
        return f"<LocalSandbox {self.id} {state}>"

    async def until_ready(self) -> int:
        """Wait for the agent and return its pid as this machine counts.

        Raises `SandboxError` saying what was printed instead. The caller then destroys it.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._meet(await self._directory.connect(self._ended))
                pid = await asyncio.shield(self._tree.agent)
        except TimeoutError as exc:
            raise self._not_started(f"no answer within {START_SECONDS:.0f} seconds") from exc
        except SandboxError as exc:
            await asyncio.wait({self._ended}, timeout=_LAST_WORDS)
            raise self._not_started(str(self._ended.result()) if self._ended.done() else exc.reason) from exc
        if not pid:
            raise self._not_started("bubblewrap did not tell its first process")
        return pid

    async def take_over(self) -> None:
        """Go on with a sandbox that an earlier server started. It may be paused, and so has to be resumed before use.

        Raises `SandboxError`. The caller then destroys it.
        """
        self._running.clear()
        control = await self._directory.reopen()
        pid, _, _ = struct.unpack("3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if pid != self._tree.agent.result():
            control.close()
            raise SandboxError("The sandbox cannot be reached", "another process is in the place of its agent")
        await self._meet(control)
        await self.agent.known()  # its numbers are not to be used again

    async def _meet(self, control: socket.socket) -> None:
        self._agent = AgentClient(
            control, self.facts, judge=self._judge, ooms=self.oom_kills, on_lost=lambda _: self._end()
        )
        await self._agent.until_ready()

    async def limit_terminals(self, pid: int, ptys: int) -> None:
        """Limit its terminals; before anything is started in it. Where that cannot be, it is logged."""
        if problem := await asyncio.to_thread(limit_terminals, pid, ptys):
            log.warning("terminals_not_limited", sandbox=self.id, reason=problem)

    async def leave(self) -> None:
        """Release what is held of it, and leave it and all that runs in it to the next server."""
        if self._agent is None:
            await self.destroy()
            return
        self._agent.leave()
        self._tree.leave()
        self._release_watches()
        self._on_left()

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
        terminal: Terminal | None = None,
    ) -> AgentProcess:
        """Start a process; raises `SandboxError`."""
        await self._until_running()
        environment = {**self.facts.env, **({"TERM": "xterm-256color"} if tty else {}), **(env or {})}
        cwd = cwd or self.workspace_path
        return await self.agent.spawn(
            argv, env=environment, cwd=cwd, tty=tty, rows=rows, cols=cols, name=name, terminal=terminal
        )

    def open_terminal(self, rows: int = 24, cols: int = 80) -> AgentTerminal:
        """Open a terminal; raises `SandboxError`."""
        return self.agent.open_terminal(rows, cols)

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

    async def take_terminal(self, path: str) -> AgentTerminal:
        """Give a terminal that an earlier server opened; raises `SandboxError`."""
        return await self.agent.take_terminal(path)

    async def end_others(self, *, spare: Collection[str]) -> None:
        """SIGKILL all programs but those with these handles, with all that they started; raises `SandboxError`."""
        for known in await self.agent.known():
            if str(known.program) not in spare:
                await (await self.agent.attach(known)).aclose()

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
        """Stop its processes one by one, but not the agent, which may have to end them; raises `SandboxError`."""
        async with self._turn:
            if self._gone():
                raise SandboxError("The sandbox cannot be paused", f"it is gone: {self.agent.why}")
            if not self._running.is_set():
                return
            self._running.clear()
            try:
                still = await self.agent.pause()
            except SandboxError:
                self._running.set()
                raise
            if not still:
                self._running.set()
                raise SandboxError("The sandbox cannot be paused", "some of its processes did not stop in time")

    async def resume(self) -> None:
        """Let its processes go on."""
        async with self._turn:
            if not self._running.is_set() and not self._gone():
                await self.agent.resume()
            self._running.set()

    def outlive(self, seconds: float) -> None:
        """Tell the agent."""
        self.agent.outlive(seconds)

    def watch_pauses(self, told: Callable[[bool], None]) -> None:
        """Do nothing: nobody else pauses a process tree."""

    async def _until_running(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._running.wait()
        except TimeoutError as exc:
            raise SandboxError("The sandbox is paused", f"nobody resumed it within {START_SECONDS:.0f} s") from exc

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
            self._tree.force_end()
            raise SandboxError(
                f"Sandbox {self.id} did not end", f"its processes did not die within {DESTROY_SECONDS:.0f} seconds"
            ) from None
        if self._left_over:
            self._left_over = not await asyncio.to_thread(self._release)

    # -- its end ----------------------------------------------------------------

    def _end(self) -> None:
        if self._ended.done():
            return
        self._ending = True
        self._tree.end()
        if self._agent is not None:
            self._agent.end()

    def _gone(self) -> bool:
        return self._ending or self._ended.done()

    def _finish(self, returncode: int | None) -> None:
        status = self._exit_status(returncode)
        if self._agent is not None:
            self._agent.ended(status)
        self._running.set()
        self._release_watches()
        self._left_over = not self._on_ended()
        self._ended.set_result(status)

    def _release_watches(self) -> None:
        self._directory.close()
        if self._notice is not None:
            self._loop.remove_reader(self._notice.fd)
            self._notice.close()
            self._notice = None

    def _exit_status(self, returncode: int | None) -> ExitStatus:
        if returncode is None:  # of a process that this server is not the parent of, the system tells nobody here
            number: int | None = signal.SIGKILL if self._ending or self._killed_for_memory() else None
        elif returncode < 0:
            number = -returncode
        else:
            number = returncode - _SHELL_SIGNALLED if returncode > _SHELL_SIGNALLED else None
        if number:
            return ExitStatus(signal=number, oom=number == signal.SIGKILL and self._killed_for_memory())
        return ExitStatus(code=returncode)

    def _killed_for_memory(self) -> bool:
        return self.oom_kills() > self._kills.over(self._loop.time())

    def _not_started(self, reason: str) -> SandboxError:
        return SandboxError("The sandbox could not be started", self._tree.printed or reason)

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
