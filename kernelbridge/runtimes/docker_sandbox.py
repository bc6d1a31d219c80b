"""One container: processes are started in it, and it is known to have ended when it has."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence

from docker.api import APIClient
from docker.errors import APIError

from kernelbridge.errors import RuntimeUnavailable, SandboxError
from kernelbridge.runtimes.base import NO_MEMORY, NO_ROOM, SOCKETS_PATH, WORKSPACE_PATH, ExitStatus
from kernelbridge.runtimes.docker_attach import Attached, start_exec
from kernelbridge.runtimes.docker_control import OUTLIVED, ControlChannel, outlived
from kernelbridge.runtimes.docker_engine import GONE, Engine, explain
from kernelbridge.runtimes.docker_events import EngineEvent
from kernelbridge.runtimes.docker_exit import OomCount, OomWatch, exit_status
from kernelbridge.runtimes.docker_pauses import Pauses, PauseTold
from kernelbridge.runtimes.docker_process import DockerProcess, launch_command
from kernelbridge.runtimes.docker_removals import Removals
from kernelbridge.runtimes.docker_tasks import Background
from kernelbridge.runtimes.facts import Facts


class DockerSandbox:
    """A running container (`runtimes.base.Sandbox`). Made by `DockerRuntime.create`."""

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
        self.control = ControlChannel(container_id, engine=engine, until_running=self.pauses.until_running)
        self._engine = engine
        self._background = background
        self._on_removed = on_removed
        self._removals = removals
        self._oom = OomWatch()
        self._oom_count = OomCount()
        self._tell_oom: Callable[[], None] = _nothing
        self._end: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._processes: dict[str, DockerProcess] = {}
        self._removal: asyncio.Lock = asyncio.Lock()
        self._judged = False
        self._removing = False
        self._removed = False

    def __repr__(self) -> str:
        state = str(self._end.result()) if self._end.done() else "paused" if self.pauses.paused else "running"
        return f"<DockerSandbox {self.id[:12]} {state}, {len(self._processes)} processes>"

    @property
    def alive(self) -> bool:
        """Whether the container is believed to run."""
        return not self._end.done()

    @property
    def ending(self) -> bool:
        """Whether it has ended, although how may not be known yet, or is being removed."""
        return self._judged or self._removing or self._end.done()

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = WORKSPACE_PATH,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        user: str = "",
    ) -> DockerProcess:
        """Start a process as the container's user, or as `user` (`uid:gid`); raises `SandboxError`."""
        await self.pauses.until_running()
        if self._end.done():
            raise SandboxError("The sandbox is gone", str(self._end.result()))
        return await self._background.whole(
            self._exec(argv, dict(env or {}), cwd, tty=tty, rows=rows, cols=cols, user=user),
            undo=DockerProcess.aclose,
            doing="starting a program",
        )

    async def _exec(
        self, argv: Sequence[str], env: dict[str, str], cwd: str, *, tty: bool, rows: int, cols: int, user: str
    ) -> DockerProcess:
        def start(api: APIClient) -> tuple[str, Attached]:
            command = launch_command(argv, tty=tty)
            exec_id = api.exec_create(self.id, command, stdin=True, tty=tty, environment=env, workdir=cwd, user=user)[
                "Id"
            ]
            return exec_id, start_exec(api, exec_id, tty=tty)

        try:
            exec_id, attached = await self._engine.call(
                start, doing="starting a program", discard=lambda started: started[1].close()
            )
        except APIError as exc:
            if exc.status_code in GONE and "paused" not in explain(exc):
                raise SandboxError("The sandbox is gone", explain(exc)) from exc
            raise SandboxError(f"The program {argv[0]!r} cannot be started", explain(exc)) from exc
        process = DockerProcess(
            exec_id, engine=self._engine, around=self, oom=self._oom, background=self._background, tty=tty
        )
        self._processes[exec_id] = process
        kills = self._oom_count.kills
        try:
            await process.start(attached, argv, rows=rows, cols=cols)
        except RuntimeUnavailable:
            self.forget(process)
            raise
        except SandboxError as exc:
            self.forget(process)
            # The engine's own helper says many things when it was not given a thread.
            if NO_ROOM not in exc.reason and await self.crowded():
                raise SandboxError(exc.message, NO_ROOM) from exc
            if self._oom_count.kills > kills:
                raise SandboxError(exc.message, NO_MEMORY) from exc
            raise
        except BaseException:
            self.forget(process)
            raise
        return process

    async def rejoin(self, handle: str) -> DockerProcess:
        """Give a process that an earlier server started; raises `SandboxError` if `handle` is none of this runtime."""
        exec_id, _, pid = handle.partition(":")
        if not (exec_id and pid.isdigit()):
            raise SandboxError("A process cannot be found again", f"{handle[:100]!r} does not name one")
        if (known := self._processes.get(exec_id)) is not None:
            return known
        process = DockerProcess(
            exec_id, engine=self._engine, around=self, oom=self._oom, background=self._background, tty=False
        )
        self._processes[exec_id] = process
        process.rejoin(int(pid))
        return process

    async def end_others(self, *, spare: int) -> None:
        """SIGKILL the sessions of all execs but that of the process `spare`; raises `SandboxError`."""
        if self.alive and await self.control.sweep_others(spare) == OUTLIVED:
            raise outlived()

    async def sweep(self, mark: str, *, spare: int = 0) -> None:
        """SIGKILL whatever has `mark`; raises `SandboxError` if some outlived that."""
        # What is being removed takes all of it along, as soon as the engine does that.
        if self.alive and not self.leaving and await self.control.sweep_marked(mark, spare) == OUTLIVED:
            raise outlived()

    async def crowded(self) -> bool | None:
        """Have its control group looked at, from inside."""
        return None if not self.alive else await self.control.is_crowded()

    async def starves(self, pid: int) -> bool:
        """Have the shell looked at, from inside."""
        return self.alive and await self.control.starves(pid)

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
        if not self._end.done():
            await self.pauses.resume()

    def watch_pauses(self, told: PauseTold) -> None:
        """Have `told` called when somebody else pauses (True) or resumes it."""
        self.pauses.watch(told)

    async def wait(self) -> ExitStatus:
        """Return how the container ended, when it has."""
        return await asyncio.shield(self._end)

    async def last_words(self) -> str:
        """Give the end of the container's own log, where its init says why it could not run; empty if it is gone."""
        try:
            said = await self._engine.call(lambda api: api.logs(self.id, tail=3), doing="reading a container's log")
        except APIError:
            return ""
        return " ".join(said.decode("utf-8", "replace").split())

    @property
    def leaving(self) -> bool:
        """Whether it was to be destroyed, and perhaps is not yet."""
        return self._removing

    async def destroy(self) -> None:
        """Kill and remove the container; raises `SandboxError` if the engine does not, which is asked again then."""
        try:
            await self._destroy()
        except SandboxError as exc:
            self._removals.insist(self.id, self._destroy, reason=exc)
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
            await self.control.aclose()
        self._on_removed(self)
        self._ended(ExitStatus(signal=signal.SIGKILL), drain=False)

    async def leave(self) -> None:
        """Release what is held of the container, and leave it and all that runs in it to the next server."""
        for process in list(self._processes.values()):
            await process.leave()
        await self.control.aclose()

    def forget(self, process: DockerProcess) -> None:
        """Take note that nothing more will be heard of a process."""
        self._processes.pop(process.exec_id, None)

    def take_event(self, event: EngineEvent) -> None:
        """Learn from the engine what happened in or to the container."""
        match event.action:
            case "oom":
                self._oom.reported()
                if self._oom_count.event(event.at):
                    self._tell_oom()
            case "exec_die":
                if (process := self._processes.get(event.exec_id)) is not None:
                    process.exited(event.code)
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
            self._ended(status, drain=False)
        else:
            self._oom.judge(status, lambda whole: self._ended(whole, drain=True))

    def engine_returned(self, *, paused: bool) -> None:
        """Learn that the engine was away, and that the container still runs, or is `paused`."""
        self.pauses.seen(paused=paused)
        for process in list(self._processes.values()):
            process.engine_returned()

    def lost(self) -> None:
        """Learn that the container is no more; how it ended may be known already."""
        if not self._judged:
            self._ended(ExitStatus(), drain=False)

    def _ended(self, status: ExitStatus, *, drain: bool) -> None:
        if not self._end.done():
            self._end.set_result(status)
        self.pauses.ended()
        for process in list(self._processes.values()):
            process.sandbox_ended(self._end.result(), drain=drain)


def _nothing() -> None:
    """Tell nobody."""
