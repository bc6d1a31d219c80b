"""Whether a container stands still: by the bridge's order, or by somebody else's, whom the engine's events tell of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from docker.errors import APIError

from kernelbridge.errors import KernelBridgeError, SandboxError
from kernelbridge.runtimes.docker.engine import GONE, Engine, explain
from kernelbridge.runtimes.docker.tasks import Background

log = structlog.get_logger(__name__)

SETTLE = 0.2
"""Seconds after which the engine is asked again: it takes late news of an older order for what is, until newer come."""
_ATTEMPTS = 5
_GAVE_UP = "unable to freeze"
"""What runc says where some process got no time to stand still, on a busy machine: soon it may."""
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
        self._orders = 0
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
        """Have `told` called when it turns out that somebody else has paused or resumed it, or has done so before."""
        self._told = told
        if self.paused:
            asyncio.get_running_loop().call_soon(told, True)  # noqa: FBT003 - a `PauseTold`

    async def pause(self) -> None:
        """Have it stand still. Idempotent; raises `SandboxError` or `RuntimeUnavailable`."""
        async with self._turn:
            if self._over:
                raise SandboxError("The sandbox is gone", "it has ended")
            self._orders += 1
            self._wanted = True
            for left in reversed(range(_ATTEMPTS)):
                try:
                    await self._engine.call(lambda api: api.pause(self._container_id), doing="pausing a container")
                    break
                except APIError as exc:
                    if "already paused" in explain(exc):
                        break
                    if left and _GAVE_UP in explain(exc):
                        continue
                    what = "The sandbox is gone" if exc.status_code in GONE else "The sandbox cannot be paused"
                    raise SandboxError(what, explain(exc)) from exc
            self._note(paused=True)

    async def resume(self) -> None:
        """Have it go on. Idempotent; raises `SandboxError` or `RuntimeUnavailable`."""
        async with self._turn:
            self._orders += 1
            self._wanted = False
            if not await self._unpause() and self.paused:
                # For a moment the engine takes the late news of an earlier resume for what is, and refuses this one.
                await asyncio.sleep(SETTLE)
                await self._unpause()
            self._note(paused=False)

    async def _unpause(self) -> bool:
        """Have the engine resume it; return whether it was paused, as far as the engine knows."""
        try:
            await self._engine.call(lambda api: api.unpause(self._container_id), doing="resuming a container")
        except APIError as exc:
            # Engine 20.10 says 500 for one that is not paused, and for one that does not run.
            if exc.status_code not in GONE and not any(words in explain(exc) for words in _NOT_PAUSED):
                raise SandboxError("The sandbox cannot be resumed", explain(exc)) from exc
            return False
        return True

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

    def _note(self, *, paused: bool) -> None:
        if paused and not self._over:
            self._running.clear()
        else:
            self._running.set()

    async def _look(self) -> None:
        """Ask the engine, twice if it says something else than what was ordered, and believe it then."""
        orders = self._orders
        if await self._is_paused() == self._wanted:
            return
        await asyncio.sleep(SETTLE)
        async with self._turn:
            if orders != self._orders or (paused := await self._is_paused()) == self._wanted or paused is None:
                return
            # Also told if it is known already: then an order of ours was not obeyed.
            self._wanted = paused
            self._note(paused=paused)
            log.warning("paused_by_somebody" if paused else "resumed_by_somebody", container=self._container_id)
            if self._told is not None and not self._over:
                self._told(paused)

    async def _is_paused(self) -> bool | None:
        """Ask the engine; None if it gives no answer: its next event, or that of the container's end, will."""
        try:
            found = await self._engine.call(
                lambda api: api.inspect_container(self._container_id), doing="inspecting a container"
            )
        except (APIError, KernelBridgeError) as exc:
            log.info("container_not_inspected", container=self._container_id, reason=str(exc))
            return None
        return bool(found["State"].get("Paused"))
