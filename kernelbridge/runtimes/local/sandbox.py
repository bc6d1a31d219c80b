"""One local sandbox: the process tree that was launched, and the agent in it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.sandbox import AgentSandbox
from kernelbridge.runtimes.contract import ExitStatus
from kernelbridge.runtimes.local.cgroups import Cgroup
from kernelbridge.runtimes.local.oom_notice import KillsSeen
from kernelbridge.runtimes.local.tree import Tree

DESTROY_SECONDS = 15.0
_LAST_WORDS_SECONDS = 5.0
"""How long a tree whose agent cannot be reached has to end by itself, and so to print why."""
_POLLS = 20
_POLL_SECONDS = 0.02
_SHELL_SIGNALLED = 128
"""A shell, or bubblewrap, exits with this plus the signal that ended its program."""


class LocalSandbox(AgentSandbox):
    """A running local sandbox; see `contract.Sandbox`. Owns `tree`, whose end is the only sign that it has ended.

    `release` removes what belongs to it on this machine, `kill` being whether with all that still runs, and returns
    whether that is gone; `on_left` is called when it is left to the next server instead.
    """

    def __init__(
        self,
        sandbox_id: str,
        tree: Tree,
        *,
        workspace_path: str,
        cgroup: Cgroup | None,
        release: Callable[[bool], bool],
        on_left: Callable[[], None],
    ) -> None:
        super().__init__(sandbox_id)
        self.workspace_path = workspace_path
        self._loop = asyncio.get_running_loop()
        self._tree = tree
        self._cgroup = cgroup
        self._release, self._on_left = release, on_left
        self._ending = False
        self._released = False
        self._on_oom_kill: Callable[[], None] = lambda: None
        self._kills = KillsSeen()
        self._notice = None if cgroup is None else cgroup.oom_notice()
        if self._notice is not None:
            self._loop.add_reader(self._notice.fd, self._on_memory)
        tree.ended.add_done_callback(lambda ended: self._on_end(ended.result()))

    # -- its end ----------------------------------------------------------------

    async def destroy(self) -> None:
        """End everything in it; raises `SandboxError` if something does not end."""
        self._terminate()
        try:
            async with asyncio.timeout(DESTROY_SECONDS):
                await self.wait()
        except TimeoutError:
            self._tree.force_end()
            raise SandboxError(
                f"Sandbox {self.id} did not end", f"its processes did not die within {DESTROY_SECONDS:.0f} seconds"
            ) from None
        if not self._released:
            self._released = await asyncio.to_thread(self._release, True)  # noqa: FBT003 - `kill`
        await self.remove_shared()

    def leave(self) -> None:
        """Leave it, and all that runs in it, to the next server."""
        super().leave()
        self._tree.leave()
        self._close_notice()
        self._on_left()

    def on_agent_lost(self) -> None:
        """End the tree."""
        self._terminate()

    async def last_words(self) -> str:
        """Return what the tree printed, or how it ended."""
        await asyncio.wait({self._ended}, timeout=_LAST_WORDS_SECONDS)
        return self._tree.printed or (str(self._ended.result()) if self._ended.done() else "")

    def _terminate(self) -> None:
        if self._ended.done():
            return
        self._ending = True
        self._tree.end()
        if self._agent is not None:
            self._agent.end()

    def _on_end(self, returncode: int | None) -> None:
        status = self._exit_status(returncode)
        self._close_notice()
        self._released = self._release(False)  # noqa: FBT003 - `kill`
        self.ended(status)

    def _exit_status(self, returncode: int | None) -> ExitStatus:
        if returncode is None:  # the system tells only the parent, which was an earlier server
            number: int | None = signal.SIGKILL if self._ending or self._killed_for_memory() else None
        elif returncode < 0:
            number = -returncode
        else:
            number = returncode - _SHELL_SIGNALLED if returncode > _SHELL_SIGNALLED else None
        if number:
            return ExitStatus(signal=number, oom=number == signal.SIGKILL and self._killed_for_memory())
        return ExitStatus(code=returncode)

    # -- limits -----------------------------------------------------------------

    def oom_kills(self) -> int:
        """Return the kernel's count for its control group."""
        return self._cgroup.oom_kills() if self._cgroup is not None else 0

    async def memory(self) -> int | None:
        """Return what its control group counts; None without one."""
        return None if self._cgroup is None else self._cgroup.memory()

    def watch_memory(self, on_kill: Callable[[], None]) -> None:
        """Call `on_kill` when that grows."""
        self._on_oom_kill = on_kill

    def judge(self, status: ExitStatus, kills: int, done: Callable[[ExitStatus], None]) -> None:
        """Call `done` at once: the kernel has counted the kill already."""
        # A shell reports the kill of its command by its exit code.
        killed = status.signal == signal.SIGKILL or status.code == _SHELL_SIGNALLED + signal.SIGKILL
        oom = killed and self.oom_kills() > max(kills, self._kills.over(self._loop.time()))
        done(replace(status, oom=oom))

    async def room(self, pid: int = 0) -> tuple[bool | None, bool]:
        """Compare the count of its control group, which the agent does not see."""
        crowded = None if self._cgroup is None else self._cgroup.crowded()
        return crowded, bool(pid and crowded and (await super().room(pid))[1])

    def _killed_for_memory(self) -> bool:
        return self.oom_kills() > self._kills.over(self._loop.time())

    def _close_notice(self) -> None:
        if self._notice is not None:
            self._loop.remove_reader(self._notice.fd)
            self._notice.close()
            self._notice = None

    def _on_memory(self) -> None:
        if self._notice is not None:
            self._notice.take()
            self._look_at_memory(_POLLS)

    def _look_at_memory(self, polls: int) -> None:
        """Call the watcher if something was killed; version 1 of the interface notifies before it counts."""
        if self._kills.seen(self.oom_kills(), self._loop.time()):
            self._on_oom_kill()
        elif polls and not self._ended.done():
            self._loop.call_later(_POLL_SECONDS, self._look_at_memory, polls - 1)
