"""Whether a container stands still: by the bridge's order, or by somebody else's, whom the engine's events tell of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from docker.errors import APIError

from kernelbridge.errors import KernelBridgeError, SandboxError
from kernelbridge.runtimes.docker_engine import GONE, Engine, explain
from kernelbridge.runtimes.docker_tasks import Background

log = structlog.get_logger(__name__)

_NOT_PAUSED = ("is not paused", "is not running")

PauseTold = Callable[[bool], None]
"""Takes that somebody else has paused (True) or resumed (False) a sandbox."""


class Pauses:
    """The pauses of one container."""

    def __init__(self, container_id: str, *, engine: Engine, background: Background) -> None:
        self._container_id = container_id
        self._engine = engine
        self._background = background
        self._turn = asyncio.Lock()
        self._wanted = False
        """What was ordered or learnt last, or is being ordered now."""
        self._running = asyncio.Event()
        self._running.set()
        self._told: PauseTold | None = None
        self._over = False

    @property
    def paused(self) -> bool:
        """Whether it is believed to stand still."""
        return not self._running.is_set()

    def watch(self, told: PauseTold) -> None:
        """Have `told` called when it turns out that somebody else has paused or resumed it."""
        self._told = told

    async def pause(self) -> None:
        """Have it stand still. Idempotent; raises `SandboxError` or `RuntimeUnavailable`."""
        async with self._turn:
            if self._over:
                raise SandboxError("The sandbox is gone", "it has ended")
            self._wanted = True
            try:
                await self._engine.call(lambda api: api.pause(self._container_id), doing="pausing a container")
            except APIError as exc:
                if "already paused" not in explain(exc):
                    what = "The sandbox is gone" if exc.status_code in GONE else "The sandbox cannot be paused"
                    raise SandboxError(what, explain(exc)) from exc
            self._note(paused=True)

    async def resume(self) -> None:
        """Have it go on. Idempotent; raises `SandboxError` or `RuntimeUnavailable`."""
        async with self._turn:
            self._wanted = False
            try:
                await self._engine.call(lambda api: api.unpause(self._container_id), doing="resuming a container")
            except APIError as exc:
                # Engine 20.10 says 500 for one that is not paused, and for one that does not run.
                if exc.status_code not in GONE and not any(words in explain(exc) for words in _NOT_PAUSED):
                    raise SandboxError("The sandbox cannot be resumed", explain(exc)) from exc
            self._note(paused=False)

    async def until_running(self) -> None:
        """Wait while it stands still, in bounded time; raises `SandboxError`."""
        try:
            async with asyncio.timeout(self._engine.timeout):
                await self._running.wait()
        except TimeoutError as exc:
            raise SandboxError("The sandbox is paused", f"nobody resumed it within {self._engine.timeout:g} s") from exc

    @asynccontextmanager
    async def kept_from(self) -> AsyncIterator[None]:
        """Let no pause be under way: a container that is killed and then frozen can be neither ended nor removed."""
        async with self._turn:
            yield

    def ended(self) -> None:
        """Learn that the container is gone: who waits need not wait any more."""
        self._over = True
        self._running.set()

    def seen(self, *, paused: bool) -> None:
        """Learn from the engine what it was a moment ago."""
        # The news of an order of ours, or of an older one, come late: only the engine knows what holds now.
        if paused != self._wanted:
            self._background.spawn(self._look(), doing="asking whether a container is paused")

    def _note(self, *, paused: bool) -> bool:
        """Take note of what it is; say whether that is news."""
        if self._over or paused == self.paused:
            return False
        if paused:
            self._running.clear()
        else:
            self._running.set()
        return True

    async def _look(self) -> None:
        async with self._turn:
            wanted = self._wanted
            try:
                state = await self._engine.call(
                    lambda api: api.inspect_container(self._container_id), doing="inspecting a container"
                )
            except APIError as exc:
                # It is gone, which an event of its own tells.
                log.debug("container_not_inspected", container=self._container_id, reason=explain(exc))
                return
            except KernelBridgeError as exc:
                log.warning("container_not_inspected", container=self._container_id, reason=str(exc))
                return
            self._wanted = paused = bool(state["State"].get("Paused"))
            # Also what is known already is told if it is not what was ordered: the engine has not obeyed.
            if self._note(paused=paused) or paused != wanted:
                log.warning("paused_by_somebody" if paused else "resumed_by_somebody", container=self._container_id)
                if self._told is not None:
                    self._told(paused)
