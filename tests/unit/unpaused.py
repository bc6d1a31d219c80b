"""What sandboxes of tests have in common that nobody pauses, fills or takes over."""

from kernelbridge.runtimes.contract import Process, Terminal


class Unpaused:
    """The part of `runtimes.contract.Sandbox` that is about pauses, room, and another server."""

    async def crowded(self) -> bool | None:
        return False

    async def starves(self, _pid: int) -> bool:
        return False

    async def pause(self) -> None:
        raise NotImplementedError

    async def resume(self) -> None:
        raise NotImplementedError

    def outlive(self, seconds: float) -> None:
        """It has no server."""

    def open_terminal(self, rows: int = 24, cols: int = 80) -> Terminal:
        raise NotImplementedError

    async def programs(self) -> list[str]:
        raise NotImplementedError

    async def take(self, program: str) -> Process:
        raise NotImplementedError

    async def take_terminal(self, path: str) -> Terminal:
        raise NotImplementedError
