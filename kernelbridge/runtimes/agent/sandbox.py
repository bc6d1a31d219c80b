"""The part of a sandbox that all runtimes share: its programs, its pauses, and what its end means for them."""

from __future__ import annotations

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from kernelbridge.aio.threads import in_thread
from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.client import START_SECONDS, AgentClient
from kernelbridge.runtimes.agent.host_directories import HostShared
from kernelbridge.runtimes.agent.process import AgentProcess
from kernelbridge.runtimes.agent.terminal import AgentTerminal
from kernelbridge.runtimes.contract import NO_MEMORY, WORKSPACE_PATH, ExitStatus, Terminal
from kernelbridge.runtimes.facts import Facts


class AgentSandbox(ABC):
    """A running sandbox; `contract.Sandbox` says what its public methods promise.

    A runtime derives its own class and uses it like this:

        shared = directories.share(name, spec)  # before the sandbox is started
        …                                       # start it, with `agent_command(…)` as its first process
        sandbox = OwnSandbox(name)
        await sandbox.connect(shared, facts)    # or, in a later server: reconnect

    It overrides `destroy`, which calls `remove_shared`; calls `ended` when the sandbox has ended; and overrides
    `oom_kills`, `watch_memory` and `judge` if it limits memory.
    """

    facts: Facts
    """Known once it is connected."""
    workspace_path = WORKSPACE_PATH

    def __init__(self, sandbox_id: str) -> None:
        self.id = sandbox_id
        self.boot_seconds = 0.0
        self._agent: AgentClient | None = None
        self._shared: HostShared | None = None
        self._ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        state = "paused" if self._agent is not None and self._agent.paused else "running"
        return f"<{type(self).__name__} {self.id} {self._ended.result() if self._ended.done() else state}>"

    # -- for the runtime --------------------------------------------------------

    @property
    def agent(self) -> AgentClient:
        """The connection to its agent; raises `SandboxError` before it is connected."""
        if self._agent is None:
            raise SandboxError("The sandbox cannot be used", "it is still being started")
        return self._agent

    @property
    def shared(self) -> HostShared:
        """What it shares with the server; raises `SandboxError` before it is connected."""
        if self._shared is None:
            raise SandboxError("The sandbox cannot be used", "it is still being started")
        return self._shared

    @property
    def alive(self) -> bool:
        """Whether it is believed to run."""
        return not self._ended.done()

    @property
    def connected(self) -> bool:
        """Whether it has been connected to its agent."""
        return self._agent is not None

    async def connect(self, shared: HostShared, facts: Facts) -> None:
        """Wait for the agent of a sandbox that was just started; own `shared` from now on.

        Raises `SandboxError` if the sandbox ends first or nothing answers for `START_SECONDS`; the caller then
        destroys it.
        """
        self._shared = shared
        began = time.monotonic()
        try:
            async with asyncio.timeout(START_SECONDS):
                self._use(await shared.agent.connect(self._ended), facts)
                await self.agent.until_ready()
            self.boot_seconds = time.monotonic() - began
        except TimeoutError as exc:
            reason = await self.last_words() or f"its agent gave no answer within {START_SECONDS:.0f} s"
            raise SandboxError("The sandbox could not be started", reason) from exc
        except SandboxError as exc:
            raise SandboxError("The sandbox could not be started", await self.last_words() or exc.reason) from exc
        finally:
            shared.agent.close()

    async def reconnect(self, shared: HostShared, facts: Facts, *, pid: int | None = None) -> None:
        """Connect to the agent of a sandbox that an earlier server started; its answer is not waited for.

        `pid` is the agent's, if it is known. Raises `SandboxError`; the caller then destroys it. Owns `shared`.
        """
        self._shared = shared
        try:
            self._use(await shared.agent.reopen(pid), facts)
        finally:
            shared.agent.close()

    async def remove_shared(self) -> None:
        """Remove its shared directory, when it has ended. Idempotent."""
        if self._shared is not None:
            # In a thread: a hostile session can fill it with millions of files.
            await in_thread(None, self._shared.remove)

    def leave(self) -> None:
        """Close the connection and leave the sandbox to the next server."""
        if self._agent is not None:
            self._agent.leave()

    def ended(self, status: ExitStatus) -> None:
        """Note that the sandbox has ended: everything that waits for it or its programs returns. The first call counts.

        `status` says how it ended.
        """
        if not self._ended.done():
            self._ended.set_result(status)
        if self._agent is not None:
            self._agent.ended(self._ended.result())

    # -- what a runtime may override ---------------------------------------------

    @abstractmethod
    def on_agent_lost(self) -> None:
        """Handle the loss of the connection to the agent: without one the sandbox is of no use, and has to end."""

    @abstractmethod
    async def destroy(self) -> None:
        """End every process in it and remove it."""

    async def last_words(self) -> str:
        """Return what its first process printed, after a start that failed; empty if nothing is known."""
        return ""

    def judge(self, status: ExitStatus, _kills: int, done: Callable[[ExitStatus], None]) -> None:
        """Call `done` with how a program ended: `status`, with `oom` set if the out-of-memory killer did it.

        `_kills` is what `oom_kills` returned when the program was started.
        """
        done(status)

    def oom_kills(self) -> int:
        """Return how often the out-of-memory killer ended something in it."""
        return 0

    async def memory(self) -> int | None:
        """Return how many bytes of memory it uses; None if that is not known."""
        return None

    def watch_memory(self, on_kill: Callable[[], None]) -> None:  # noqa: B027 - there is none without a limit
        """Call `on_kill` with each such kill."""

    async def room(self, pid: int = 0) -> tuple[bool | None, bool]:
        """Return whether it is crowded, and whether `pid`, a bash, waits to fork."""
        return (await self.agent.room(pid)) if self.alive else (None, False)

    # -- the contract -------------------------------------------------------------

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        terminal: Terminal | None = None,
    ) -> AgentProcess:
        """Start a program as the sandbox's user; raises `SandboxError`."""
        agent, kills = self.agent, self.oom_kills()
        variables = {**self.facts.env, **({"TERM": "xterm-256color"} if tty else {}), **(env or {})}
        try:
            return await agent.spawn(
                argv, env=variables, cwd=cwd or self.workspace_path, tty=tty, rows=rows, cols=cols, terminal=terminal
            )
        except SandboxError as exc:
            if self.oom_kills() > kills:
                raise SandboxError(exc.message, NO_MEMORY) from exc
            raise

    def open_terminal(self, rows: int = 24, cols: int = 80) -> AgentTerminal:
        """Open a terminal; raises `SandboxError`."""
        return self.agent.open_terminal(rows, cols)

    async def programs(self) -> list[str]:
        """Return the ids of all programs; raises `SandboxError`."""
        return [str(known.program) for known in await self.agent.known()]

    async def take(self, program: str) -> AgentProcess:
        """Return the program with this id; raises `SandboxError`."""
        for known in await self.agent.known():
            if str(known.program) == program:
                return await self.agent.attach(known)
        raise SandboxError("A program cannot be found again", f"{program[:100]!r} is none that runs")

    async def take_terminal(self, path: str) -> AgentTerminal:
        """Return a terminal that an earlier server opened; raises `SandboxError`."""
        return await self.agent.take_terminal(path)

    async def crowded(self) -> bool | None:
        """Return whether it has nine tenths of the processes that it may have; raises `SandboxError`."""
        return (await self.room())[0]

    async def starves(self, pid: int) -> bool:
        """Return whether it is crowded and `pid` waits to fork; raises `SandboxError`."""
        return await self.room(pid) == (True, True)

    async def pause(self) -> None:
        """Stop every program; raises `SandboxError`."""
        await self.agent.pause()

    async def resume(self) -> None:
        """Let them run on; raises `SandboxError`."""
        await self.agent.resume()

    def relay(self, accept: Callable[[int], None], count: int) -> None:
        """Call `accept` with up to `count` more connections to the proxy's port."""
        if self.alive:
            self.agent.relay(accept, count)

    def outlive(self, seconds: float) -> None:
        """Set for how long it lives without a server."""
        self.agent.outlive(seconds)

    async def wait(self) -> ExitStatus:
        """Wait for its end and return how it ended."""
        return await asyncio.shield(self._ended)

    # -- its agent ------------------------------------------------------------------

    def _use(self, control: socket.socket, facts: Facts) -> None:
        self.facts = facts
        self._agent = AgentClient(
            control, facts, judge=self.judge, oom_kills=self.oom_kills, on_lost=lambda _: self.on_agent_lost()
        )
