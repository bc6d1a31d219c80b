"""What sandboxes of tests have in common that nobody pauses, fills or takes over."""

from collections.abc import Callable
from pathlib import Path

from kernelbridge.runtimes.agent.host_directories import HostShared
from kernelbridge.runtimes.contract import Process, Terminal


def host_shared(path: Path) -> HostShared:
    """The shared directory of a sandbox without a file system of its own; removed by nobody."""
    return HostShared(path, str(path), on_removed=lambda _: None)


class Unpaused:
    """The part of `runtimes.contract.Sandbox` that is about pauses, room, and another server."""

    boot_seconds = 0.0

    async def memory(self) -> int | None:
        return None

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

    def relay(self, accept: Callable[[int], None], count: int) -> None:
        """It has the network of the machine."""

    def open_terminal(self, rows: int = 24, cols: int = 80) -> Terminal:
        raise NotImplementedError

    async def programs(self) -> list[str]:
        raise NotImplementedError

    async def take(self, program: str) -> Process:
        raise NotImplementedError

    async def take_terminal(self, path: str) -> Terminal:
        raise NotImplementedError
