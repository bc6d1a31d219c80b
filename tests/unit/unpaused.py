"""What sandboxes of tests have in common that nobody pauses, fills or takes over."""

from collections.abc import Callable

from kernelbridge.runtimes.base import Process


class Unpaused:
    """The part of `runtimes.base.Sandbox` that is about pauses, room, and another server."""

    async def crowded(self) -> bool | None:
        return False

    async def starves(self, _pid: int) -> bool:
        return False

    async def pause(self) -> None:
        raise NotImplementedError

    async def resume(self) -> None:
        raise NotImplementedError

    def watch_pauses(self, told: Callable[[bool], None]) -> None:
        """Nobody else does."""

    async def rejoin(self, handle: str) -> Process:
        raise NotImplementedError

    async def end_others(self, *, spare: int) -> None:
        raise NotImplementedError
