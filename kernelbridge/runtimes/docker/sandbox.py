"""One container: its agent runs programs in it, and the engine reports how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from docker.api import APIClient
from docker.errors import APIError, DockerException

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.sandbox import AgentSandbox
from kernelbridge.runtimes.contract import END_SECONDS, ExitStatus
from kernelbridge.runtimes.docker.engine import GONE, Engine, explain
from kernelbridge.runtimes.docker.events import EngineEvent
from kernelbridge.runtimes.docker.exit_status import OomCount, OomWatch, exit_status
from kernelbridge.runtimes.docker.removals import Removals
from kernelbridge.runtimes.docker.tasks import Background

_KILLED = ExitStatus(signal=signal.SIGKILL)


class DockerSandbox(AgentSandbox):
    """A running container (`contract.Sandbox`). Made by `DockerRuntime`."""

    def __init__(
        self,
        container_id: str,
        *,
        engine: Engine,
        background: Background,
        on_removed: Callable[[DockerSandbox], None],
        removals: Removals,
    ) -> None:
        super().__init__(container_id)
        self._engine = engine
        self._background = background
        self._on_removed = on_removed
        self._removals = removals
        self._oom = OomWatch()
        self._oom_count = OomCount()
        self._on_oom_kill: Callable[[], None] = _nothing
        self._removal = asyncio.Lock()
        self._dead = False
        """Whether it has ended, although the status may not be known yet."""
        self._removing = False
        self._removed = False

    # -- memory -----------------------------------------------------------------

    def oom_kills(self) -> int:
        """Return the number of the engine's out-of-memory events."""
        return self._oom_count.kills

    async def memory(self) -> int | None:
        """Return what the engine counts."""
        try:
            found = await self._engine.call(
                lambda api: api.stats(self.id, stream=False, one_shot=True), doing="asking for a container's memory"
            )
        except DockerException as exc:  # also that the engine is too old for this question
            raise SandboxError("The sandbox's memory is not known", str(exc)) from exc
        used = found.get("memory_stats", {}).get("usage")
        return used if isinstance(used, int) else None

    def watch_memory(self, on_kill: Callable[[], None]) -> None:
        """Call `on_kill` with each of them."""
        self._on_oom_kill = on_kill

    def judge(self, status: ExitStatus, _kills: int, done: Callable[[ExitStatus], None]) -> None:
        """Call `done` when it is known whether a SIGKILL was the out-of-memory killer's."""
        self._oom.judge(status, done)

    # -- its end ----------------------------------------------------------------

    @property
    def leaving(self) -> bool:
        """Whether its removal has been asked for."""
        return self._removing

    async def destroy(self) -> None:
        """Kill and remove the container; raises `SandboxError` if the engine does not, and asks it again later."""
        try:
            await self._remove()
        except SandboxError as exc:
            self._removals.insist(self.id, self._remove, reason=exc)
            if self._agent is not None:
                # What runs in it need not wait for the engine.
                self._agent.end()
                self._agent.ended(_KILLED)
            raise

    async def _remove(self) -> None:
        async with self._removal:
            if self._removed:
                return
            self._removing = True
            try:
                await self._engine.call(
                    lambda api: api.remove_container(self.id, v=True, force=True), doing="removing a container"
                )
            except APIError as exc:
                if exc.status_code not in GONE:
                    raise SandboxError("The sandbox cannot be removed", explain(exc)) from exc
            await self.remove_shared()
            self._removed = True
        self._on_removed(self)
        self.ended(_KILLED)

    def on_agent_lost(self) -> None:
        """End the sandbox, with the status that the engine reports, if it does."""
        if not (self._dead or self._removing):
            self._background.create(self._end_without_agent())

    async def _end_without_agent(self) -> None:
        await asyncio.wait({self._ended}, timeout=END_SECONDS)
        if not (self._dead or self._removing):
            self.ended(ExitStatus())
            with contextlib.suppress(SandboxError):  # the engine is asked again
                await self.destroy()

    # -- for the runtime ------------------------------------------------------------

    def on_event(self, event: EngineEvent) -> None:
        """Handle an event of the container."""
        match event.action:
            case "oom":
                self._oom.reported()
                if self._oom_count.event(event.at):
                    self._on_oom_kill()
            case "die":
                self.on_death(exit_status(event.code))
            case "destroy":
                self.on_loss()

    def on_death(self, status: ExitStatus) -> None:
        """Handle the end of the container's first process."""
        if self._dead:
            return
        self._dead = True
        if self._removing:
            self.ended(_KILLED)
        else:
            self._oom.judge(status, self.ended)

    def on_loss(self) -> None:
        """Handle that the container does not exist any more; how it ended may be known already."""
        if not self._dead:
            self.ended(ExitStatus())

    async def output(self) -> tuple[bytes, bytes]:
        """Return what the first process has written to stdout and to stderr; raises `SandboxError`."""

        def read(api: APIClient) -> tuple[bytes, bytes]:
            return api.logs(self.id, stderr=False), api.logs(self.id, stdout=False)

        try:
            return await self._engine.call(read, doing="reading a container's log")
        except APIError as exc:
            raise SandboxError("A container's log cannot be read", explain(exc)) from exc

    async def last_words(self) -> str:
        """Return the end of that; empty if there is nothing."""
        try:
            return " ".join(b"".join(await self.output()).decode("utf-8", "replace").split())[-500:]
        except SandboxError:
            return ""


def _nothing() -> None:
    """Do nothing."""
