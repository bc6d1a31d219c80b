"""One container: its agent starts programs in it, and it is known to have ended when it has."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Collection, Mapping, Sequence

from docker.api import APIClient
from docker.errors import APIError

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.client import START_SECONDS, AgentClient
from kernelbridge.runtimes.agent.directory import AgentDirectory
from kernelbridge.runtimes.agent.process import AgentProcess
from kernelbridge.runtimes.agent.terminal import AgentTerminal
from kernelbridge.runtimes.contract import NO_MEMORY, SOCKETS_PATH, WORKSPACE_PATH, ExitStatus, Terminal
from kernelbridge.runtimes.docker.engine import GONE, Engine, explain
from kernelbridge.runtimes.docker.events import EngineEvent
from kernelbridge.runtimes.docker.exit_status import OomCount, OomWatch, exit_status
from kernelbridge.runtimes.docker.pauses import Pauses, PauseTold
from kernelbridge.runtimes.docker.removals import Removals
from kernelbridge.runtimes.docker.spec import HOSTNAME
from kernelbridge.runtimes.docker.tasks import Background
from kernelbridge.runtimes.facts import Facts

END_NOTICE = 2.0
"""Seconds that the engine has to say how a container ended whose agent is gone. One that hangs does not say it."""

_KILLED = ExitStatus(signal=signal.SIGKILL)


class DockerSandbox:
    """A running container (`contract.Sandbox`). Made by `DockerRuntime.create`.

    The engine makes, pauses and removes it, and tells how it ended. All else is between the bridge and the agent.
    """

    facts: Facts
    """Set once it is a workspace's: the container that finds them out has none."""
    workspace_path = WORKSPACE_PATH
    sockets_path = SOCKETS_PATH

    def __init__(
        self,
        container_id: str,
        *,
        engine: Engine,
        background: Background,
        on_removed: Callable[[DockerSandbox], None],
        removals: Removals,
    ) -> None:
        self.id = container_id
        self.pauses = Pauses(container_id, engine=engine, background=background)
        self._engine = engine
        self._background = background
        self._on_removed = on_removed
        self._removals = removals
        self._agent: AgentClient | None = None
        """Once it has been reached."""
        self._left: AgentDirectory | None = None
        """Of an agent that an earlier server has left, and that may stand still until `resume`."""
        self._reaching = asyncio.Lock()
        self._outlives: float | None = None
        """Seconds; None: what its agent was told last."""
        self._oom = OomWatch()
        self._oom_count = OomCount()
        self._tell_oom: Callable[[], None] = _nothing
        self._end: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._removal: asyncio.Lock = asyncio.Lock()
        self._judged = False
        """Whether it has ended, although how may not be known yet."""
        self._removing = False
        self._removed = False

    def __repr__(self) -> str:
        state = str(self._end.result()) if self._end.done() else "paused" if self.pauses.paused else "running"
        return f"<DockerSandbox {self.id[:12]} {state}>"

    # -- its agent ----------------------------------------------------------------

    @property
    def agent(self) -> AgentClient:
        """The connection to its first process; raises `SandboxError` before `reach`."""
        if self._agent is None:
            raise SandboxError("The sandbox cannot be used", "it is still being started")
        return self._agent

    async def reach(self, directory: AgentDirectory) -> None:
        """Wait for the agent of a container that has just been started; closes `directory`.

        Raises `SandboxError` with what the container has printed instead; the caller then destroys it.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._speak(await directory.connect(self._end))
        except TimeoutError as exc:
            reason = await self.last_words() or f"its agent gave no answer within {START_SECONDS:.0f} s"
            raise SandboxError("The sandbox could not be started", reason) from exc
        except SandboxError as exc:
            raise SandboxError("The sandbox could not be started", await self.last_words() or exc.reason) from exc
        finally:
            directory.close()

    async def _reach_again(self, directory: AgentDirectory) -> None:
        try:
            await self._speak(await directory.reopen())
            await self.agent.known()  # its programs' numbers are not to be used again
        except BaseException:
            self.leave()
            self._agent = None
            raise
        finally:
            directory.close()

    async def _speak(self, control: socket.socket) -> None:
        self._agent = AgentClient(
            control,
            self.facts,
            judge=lambda status, _, then: self._oom.judge(status, then),
            on_lost=self._on_agent_lost,
        )
        await self._agent.until_ready()
        if self._outlives is not None:
            self._agent.outlive(self._outlives)

    # -- the contract -------------------------------------------------------------

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = WORKSPACE_PATH,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        name: str = "",
        terminal: Terminal | None = None,
    ) -> AgentProcess:
        """Start a process as the container's user; raises `SandboxError`."""
        await self.pauses.until_running()
        term = {"TERM": "xterm-256color"} if tty else {}
        environment = {"HOSTNAME": HOSTNAME, **self.facts.env, **term, **(env or {})}
        kills = self._oom_count.kills
        try:
            return await self.agent.spawn(
                argv, env=environment, cwd=cwd, tty=tty, rows=rows, cols=cols, name=name, terminal=terminal
            )
        except SandboxError as exc:
            if self._oom_count.kills > kills:
                raise SandboxError(exc.message, NO_MEMORY) from exc
            raise

    def open_terminal(self, rows: int = 24, cols: int = 80) -> AgentTerminal:
        """Open a terminal; raises `SandboxError`."""
        return self.agent.open_terminal(rows, cols)

    async def take_terminal(self, path: str) -> AgentTerminal:
        """Give a terminal that an earlier server opened; raises `SandboxError`."""
        return await self.agent.take_terminal(path)

    async def rejoin(self, handle: str) -> AgentProcess:
        """Give a program that an earlier server started; raises `SandboxError`."""
        for known in await self.agent.known():
            if str(known.program) == handle:
                return await self.agent.attach(known)
        raise SandboxError("A process cannot be found again", f"{handle[:100]!r} is none that runs")

    async def end_others(self, *, spare: Collection[str]) -> None:
        """SIGKILL all programs but those with these handles, with all that they started; raises `SandboxError`."""
        for known in await self.agent.known():
            if str(known.program) not in spare:
                await (await self.agent.attach(known)).aclose()

    async def crowded(self) -> bool | None:
        """Have its agent look at its control group."""
        return (await self.agent.room())[0] if self._usable else None

    async def starves(self, pid: int) -> bool:
        """Have its agent look at the shell."""
        return self._usable and (await self.agent.room(pid)) == (True, True)

    @property
    def _usable(self) -> bool:
        return not (self._end.done() or self._removing or self.pauses.paused)

    def oom_kills(self) -> int:
        """Count what the engine's out-of-memory events tell of."""
        return self._oom_count.kills

    def watch_memory(self, tell: Callable[[], None]) -> None:
        """Call `tell` with each of them."""
        self._tell_oom = tell

    async def pause(self) -> None:
        """Have everything in it stand still; raises `SandboxError` or `RuntimeUnavailable`."""
        await self.pauses.pause()

    async def resume(self) -> None:
        """Have everything in it go on; raises `SandboxError` or `RuntimeUnavailable`."""
        if self._end.done():
            return
        await self.pauses.resume()
        async with self._reaching:
            if self._left is not None:
                await self._reach_again(self._left)
                self._left = None

    def outlive(self, seconds: float) -> None:
        """Tell its agent; one that the engine has paused ends no sooner than it goes on."""
        self._outlives = seconds
        if self._agent is not None:
            self._agent.outlive(seconds)

    def watch_pauses(self, told: PauseTold) -> None:
        """Have `told` called when somebody else pauses (True) or resumes it."""
        self.pauses.watch(told)

    async def wait(self) -> ExitStatus:
        """Return how the container ended, when it has."""
        return await asyncio.shield(self._end)

    async def destroy(self) -> None:
        """Kill and remove the container; raises `SandboxError` if the engine does not, which is asked again then."""
        try:
            await self._destroy()
        except SandboxError as exc:
            self._removals.insist(self.id, self._destroy, reason=exc)
            if self._agent is not None:
                # What runs in it need not wait for the engine.
                self._agent.end()
                self._agent.ended(_KILLED)
            raise

    async def _destroy(self) -> None:
        async with self._removal:
            if self._removed:
                return
            self._removing = True
            async with self.pauses.kept_from():
                try:
                    await self._engine.call(
                        lambda api: api.remove_container(self.id, v=True, force=True), doing="removing a container"
                    )
                except APIError as exc:
                    if exc.status_code not in GONE:
                        raise SandboxError("The sandbox cannot be removed", explain(exc)) from exc
                self.pauses.ended()
            self._removed = True
        self._on_removed(self)
        self._ended(_KILLED)

    # -- for the runtime ------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the container is believed to run."""
        return not self._end.done()

    @property
    def leaving(self) -> bool:
        """Whether it was to be destroyed, and perhaps is not yet."""
        return self._removing

    async def output(self) -> tuple[bytes, bytes]:
        """Return what the container's first process has printed, to stdout and to stderr; raises `SandboxError`."""

        def read(api: APIClient) -> tuple[bytes, bytes]:
            return api.logs(self.id, stderr=False), api.logs(self.id, stdout=False)

        try:
            return await self._engine.call(read, doing="reading a container's log")
        except APIError as exc:
            raise SandboxError("A container's log cannot be read", explain(exc)) from exc

    async def last_words(self) -> str:
        """Give the end of that, where it says why it could not run; empty if there is nothing."""
        try:
            return " ".join(b"".join(await self.output()).decode("utf-8", "replace").split())[-500:]
        except SandboxError:
            return ""

    def adopted(self, directory: AgentDirectory) -> None:
        """Stand for a container that an earlier server has left; nothing can be asked of it before `resume`."""
        if self._agent is None:
            self._left = directory

    def leave(self) -> None:
        """Leave the container and all that runs in it to the next server."""
        if self._agent is not None:
            self._agent.leave()

    def take_event(self, event: EngineEvent) -> None:
        """Learn from the engine what happened in or to the container."""
        match event.action:
            case "oom":
                self._oom.reported()
                if self._oom_count.event(event.at):
                    self._tell_oom()
            case "pause" | "unpause":
                self.pauses.seen(paused=event.action == "pause")
            case "die":
                self.died(exit_status(event.code))
            case "destroy":
                self.lost()

    def died(self, status: ExitStatus) -> None:
        """Learn that the container's own process has ended."""
        if self._judged:
            return
        self._judged = True
        if self._removing:
            self._ended(_KILLED)
        else:
            self._oom.judge(status, self._ended)

    def lost(self) -> None:
        """Learn that the container is no more; how it ended may be known already."""
        if not self._judged:
            self._ended(ExitStatus())

    # -- its end --------------------------------------------------------------------

    def _on_agent_lost(self, _reason: str) -> None:
        if not (self._judged or self._removing):
            self._background.spawn(self._without_agent(), doing="removing a container without an agent")

    async def _without_agent(self) -> None:
        """Take the container for ended if the engine does not say so: nothing runs in it without its first process."""
        await asyncio.wait({self._end}, timeout=END_NOTICE)
        if not (self._judged or self._removing):
            self._ended(ExitStatus())
            with contextlib.suppress(SandboxError):  # it is asked again
                await self.destroy()

    def _ended(self, status: ExitStatus) -> None:
        if not self._end.done():
            self._end.set_result(status)
        self.pauses.ended()
        if self._agent is not None:
            self._agent.ended(self._end.result())


def _nothing() -> None:
    """Tell nobody."""
