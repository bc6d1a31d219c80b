"""What sandboxes of tests have in common that nobody pauses or fills."""

from collections.abc import Callable


class Unpaused:
    """The part of `runtimes.base.Sandbox` that is about pauses and room."""

    async def crowded(self) -> bool | None:
        return False

    async def pause(self) -> None:
        raise NotImplementedError

    async def resume(self) -> None:
        raise NotImplementedError

    def watch_pauses(self, told: Callable[[bool], None]) -> None:
        """Nobody else does."""
