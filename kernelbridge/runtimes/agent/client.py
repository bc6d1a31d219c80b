"""Starting, finding, pausing and ending the programs of one sandbox, through its agent."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent import messages
from kernelbridge.runtimes.agent.link import AgentLink
from kernelbridge.runtimes.agent.messages import NAME_LENGTH, Answer, Known, Request
from kernelbridge.runtimes.agent.process import AgentProcess
from kernelbridge.runtimes.agent.stream import is_pipe_or_terminal, is_proxy_connection
from kernelbridge.runtimes.agent.terminal import AgentTerminal, open_slave, open_terminal, stop_echo
from kernelbridge.runtimes.contract import ExitStatus, Moment, Terminal
from kernelbridge.runtimes.facts import Facts

START_SECONDS = 30.0
"""How long an agent may take to come up, or to start a program; a machine that needs longer is not usable."""
ANSWER_SECONDS = 30.0
"""How long it may take for anything else. It gives up ending processes after eleven."""
DROPPED_SECONDS = 1.0
"""How long no other connection is asked for after one that was lost, because the server had too many open files."""
_NO_TERMINALS = (
    "the server gets no /dev/pts/ptmx from it, as always under gVisor (--oci-runtime): cells work there, but no "
    "commands and terminals"
)
_MOST_KNOWN = 4096
"""Programs that an agent may report."""

Judge = Callable[[ExitStatus, int, Callable[[ExitStatus], None]], None]
"""Takes how a program ended, and the number of out-of-memory kills when it was started. It calls the third argument
once, with the final status: `oom` set if the kernel's out-of-memory killer ended the program."""


def agent_source() -> bytes:
    """Return the agent's program text: one file, for Python 3.8 and later."""
    return resources.files("kernelbridge.guest").joinpath("agent.py").read_bytes()


def agent_command(
    python: str,
    file: str,
    directory: str,
    *,
    rlimits: Mapping[str, int],
    start: float,
    keep: Sequence[int] = (),
    proxy: int | None = None,
) -> list[str]:
    """Return the command of a sandbox's first process.

    Arguments, all paths as the sandbox sees them: `python`, the interpreter; `file`, which contains `agent_source()`;
    `directory`, that of `AgentDirectory` (`<shared>/agent`); `rlimits`, the limits of each process, named as in
    setrlimit(2) without `RLIMIT_`; `start`, the seconds after which it ends if no server has connected; `keep`,
    descriptors that it keeps open and passes to no program; `proxy`, the port at which it accepts connections for the
    bridge, if the sandbox has a loopback of its own.
    """
    config = {"directory": directory, "start": start, "limits": dict(rlimits), "keep": list(keep), "proxy": proxy}
    return [python, "-I", "-S", file, json.dumps(config)]


class AgentClient:
    """The connection to one sandbox's agent, and the programs that it runs.

    `control` is what `AgentDirectory` returned; owned from now on. `facts` say which user the sandbox has. `judge`
    decides whether a SIGKILL came from the out-of-memory killer; `oom_kills` returns the count that it compares with.
    `on_lost` is called once, with the reason, when the connection breaks: the sandbox cannot be used any more; end it,
    and then call `ended`. Every method that waits for an answer raises `SandboxError` without a connection.
    """

    def __init__(
        self,
        control: socket.socket,
        facts: Facts,
        *,
        judge: Judge,
        on_lost: Callable[[str], None],
        oom_kills: Callable[[], int] = lambda: 0,
    ) -> None:
        self._facts = facts
        self._judge, self._oom_kills = judge, oom_kills
        self._report_lost = on_lost
        self._loop = asyncio.get_running_loop()
        # The agent may still use numbers of an earlier server. All clients count from one clock, which never goes back.
        self._numbers = itertools.count(time.monotonic_ns() // 1000)
        self._processes: dict[int, AgentProcess] = {}
        self._requests: dict[int, asyncio.Future[Answer | AgentProcess | AgentTerminal]] = {}
        """Not answered yet. `Attach` is answered with a process, made before later messages about it arrive."""
        self._attaching: dict[int, Known | None] = {}
        """By number of the request; None for a terminal."""
        self._listed: dict[int, list[Known]] = {}
        self._ended_elsewhere = 0
        """Ends that were reported of programs that are not attached."""
        self._turn = asyncio.Lock()
        """One pause or resume at a time."""
        self._running = asyncio.Event()
        self._running.set()
        self._accept: Callable[[int], None] | None = None
        self._awaited = 0
        """Connections that were asked for and have not come."""
        self.why = "it has ended"
        """Why there is no connection any more."""
        self._link = AgentLink(control, on_answer=self._on_answer, on_dropped=self._on_dropped, on_lost=self._on_lost)

    @property
    def closed(self) -> bool:
        """Whether there is no connection any more."""
        return self._link.closed

    @property
    def paused(self) -> bool:
        """Whether this client has paused the programs."""
        return not self._running.is_set()

    async def until_ready(self) -> None:
        """Wait until the agent has answered; raises `SandboxError` if the connection breaks first."""
        if not await asyncio.shield(self._link.ready):
            raise self._gone()

    def outlive(self, seconds: float) -> None:
        """Set for how many seconds the sandbox lives without a connection, from now on; then it ends itself."""
        self._link.post(messages.Outlive(seconds))

    def relay(self, accept: Callable[[int], None], count: int) -> None:
        """Call `accept` with up to `count` more connections to the proxy's port; it owns their descriptors."""
        self._accept = accept
        if self._link.ready.done():
            self._ask_for_connections(count)
        else:
            self._link.ready.add_done_callback(lambda _: self._ask_for_connections(count))

    def _ask_for_connections(self, count: int) -> None:
        if self._link.relays:  # an agent of an earlier version does not know the request
            self._awaited += count
            self._link.post(messages.Relay(count))

    # -- programs -----------------------------------------------------------------

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        terminal: Terminal | None = None,
    ) -> AgentProcess:
        """Start a program; `contract.Sandbox.exec` explains the arguments, but here `env` is all of its environment.

        Waits while the sandbox is paused. Raises `SandboxError`; when cancelled, the program is killed as soon as it
        runs.
        """
        await self._until_running()
        if self._link.closed:
            raise SandboxError(f"{argv[0]!r} could not be started", f"the sandbox is gone: {self.why}")
        number = next(self._numbers)
        # The standard library's JSON, because it carries file names that are not UTF-8.
        body = json.dumps({"argv": list(argv), "env": dict(env), "cwd": cwd, "member": terminal is not None})
        with contextlib.ExitStack() as undo:
            body_fd = memory_file("spawn", body.encode())
            undo.callback(os.close, body_fd)
            if terminal is not None:
                if not isinstance(terminal, AgentTerminal):
                    raise TypeError(terminal)
                tty, ours, theirs = True, os.dup(terminal.master), os.dup(terminal.slave)
            else:
                ours, theirs = self._open_output(rows, cols) if tty else os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, theirs)
            undo.callback(os.close, ours)
            kept = os.dup(ours)
            undo.callback(os.close, kept)
            process = self._process(number, argv[0][:NAME_LENGTH], ours, tty=tty)
            undo.pop_all()
        self._link.post(messages.Spawn(number, process.name, tty), (body_fd, theirs, kept))
        try:
            async with asyncio.timeout(START_SECONDS):
                await process.until_started(argv[0])
        except TimeoutError as exc:
            raise SandboxError(
                f"{argv[0]!r} could not be started in the sandbox", f"no answer within {START_SECONDS:.0f} seconds"
            ) from exc
        return process

    def open_terminal(self, rows: int, cols: int) -> AgentTerminal:
        """Open a terminal without echo; raises `SandboxError` if the sandbox has no more."""
        if self._link.closed:
            raise self._gone()
        master, slave = self._open_output(rows, cols)
        try:
            stop_echo(slave)
            terminal = self._terminal(master, slave)
        except BaseException:
            os.close(master)
            os.close(slave)
            raise
        self._link.post(messages.Hold(terminal.path), (os.dup(master),))
        return terminal

    async def take_terminal(self, path: str) -> AgentTerminal:
        """Return a terminal that an earlier server opened; raises `SandboxError`."""
        number = next(self._numbers)
        taken = await self._attached(number, None, messages.Take(number, path))
        if not isinstance(taken, AgentTerminal):
            raise SandboxError("A terminal cannot be found again", f"the agent has no {path!r} any more")
        return taken

    async def known(self) -> list[Known]:
        """List the programs that run, or have ended and were not killed: their end may not be known to anybody yet."""
        number = next(self._numbers)
        found = self._listed[number] = []
        try:
            await self._ask(number, messages.List(number))
        finally:
            del self._listed[number]
        return found

    async def attach(self, known: Known) -> AgentProcess:
        """Return a program that `known` listed, with what it wrote meanwhile; raises `SandboxError`."""
        if (process := self._processes.get(known.program)) is not None:
            return process
        number = next(self._numbers)
        attached = await self._attached(number, known, messages.Attach(number, known.program))
        if not isinstance(attached, AgentProcess):
            raise SandboxError("A program cannot be found again", f"the agent has no {known.name!r} any more")
        return attached

    # -- all of them ----------------------------------------------------------------

    async def pause(self) -> None:
        """SIGSTOP every program until none runs. Idempotent; raises `SandboxError`, and then `resume` should follow."""
        async with self._turn:
            if self.paused and not self.closed:
                return
            self._running.clear()
            number = next(self._numbers)
            stopped = False
            try:
                stopped = self._done(await self._ask(number, messages.Pause(number)))
            finally:
                if not stopped:
                    self._running.set()
            if not stopped:
                raise SandboxError("The sandbox cannot be paused", "some of its processes did not stop in time")

    async def resume(self) -> None:
        """SIGCONT what `pause` stopped, also that of an earlier server. Idempotent; does nothing without a connection.

        Raises `SandboxError` if the agent does not answer.
        """
        async with self._turn:
            if not self.closed:
                number = next(self._numbers)
                await self._ask(number, messages.Resume(number))
            self._running.set()

    async def room(self, pid: int = 0) -> tuple[bool | None, bool]:
        """Return whether hardly any process can be started (None if unknown), and whether `pid` waits for that.

        `pid` is a bash, which sleeps before it tries again to fork.
        """
        number = next(self._numbers)
        answer = await self._ask(number, messages.AskRoom(number, pid))
        return (answer.crowded, answer.waits) if isinstance(answer, messages.Room) else (None, False)

    # -- its end ----------------------------------------------------------------------

    def end(self) -> None:
        """Make the agent end everything and itself, and close the connection. Idempotent."""
        self._link.post(messages.End())
        self._link.close()

    def leave(self) -> None:
        """Close the connection and leave everything running for another server. Idempotent.

        Requests that are not answered yet fail; programs that have not started by then are killed.
        """
        self._link.close()
        self.why = "it is left to another server"
        self._running.set()
        for process in self._processes.values():
            process.leave(self._gone())
        self._fail(self._gone())

    def ended(self, status: ExitStatus) -> None:
        """End every program here, because the sandbox has ended; `status` says how."""
        self._link.close()
        self._running.set()
        error = SandboxError("The sandbox is gone", f"{self.why} ({status})")
        for process in list(self._processes.values()):
            process.on_lost(error, ExitStatus(signal=signal.SIGKILL, oom=status.oom, lost=True))
        self._processes.clear()
        self._fail(error)

    # -- for its processes ----------------------------------------------------------------

    def post(self, request: messages.Signal | messages.Kill) -> None:
        """Send a request without waiting for an answer."""
        self._link.post(request)

    async def moment(self) -> Moment:
        """Return the time in the sandbox; raises `SandboxError`."""
        number = next(self._numbers)
        answer = await self._ask(number, messages.AskMoment(number))
        if not isinstance(answer, messages.Moment):
            raise self._gone()
        return Moment(answer.ticks, answer.last, answer.kills)

    async def prune(self, program: int, since: Moment | None) -> bool:
        """SIGKILL what a program has started, or has started since a moment; return whether nothing of it is left."""
        number = next(self._numbers)
        moment = None if since is None else (since.ticks, since.last)
        try:
            return self._done(await self._ask(number, messages.Prune(number, program, moment)))
        except SandboxError:
            if self.closed:
                return True  # all of it ends
            raise

    def forget(self, program: int) -> None:
        """Forget a program that can send nothing more."""
        self._processes.pop(program, None)

    # -- helpers ------------------------------------------------------------------------

    def _process(self, number: int, name: str, fd: int, *, tty: bool) -> AgentProcess:
        process = AgentProcess(number, name, fd, tty=tty, oom_kills=self._oom_kills(), agent=self)
        self._processes[number] = process
        return process

    def _terminal(self, master: int, slave: int) -> AgentTerminal:
        return AgentTerminal(master, slave, drop=lambda path: self._link.post(messages.Drop(path)))

    def _open_output(self, rows: int, cols: int) -> tuple[int, int]:
        if self._link.ptmx < 0:
            raise SandboxError("A terminal cannot be opened in the sandbox", _NO_TERMINALS)
        return open_terminal(self._link.ptmx, rows, cols, uid=self._facts.uid, gid=self._facts.gid)

    async def _until_running(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._running.wait()
        except TimeoutError as exc:
            raise SandboxError("The sandbox is paused", f"nobody resumed it within {START_SECONDS:.0f} s") from exc

    async def _attached(
        self, number: int, known: Known | None, request: Request
    ) -> Answer | AgentProcess | AgentTerminal:
        self._attaching[number] = known
        try:
            return await self._ask(number, request)
        finally:
            del self._attaching[number]

    async def _ask(self, number: int, request: Request) -> Answer | AgentProcess | AgentTerminal:
        if self._link.closed:
            raise self._gone()
        answer: asyncio.Future[Answer | AgentProcess | AgentTerminal] = self._loop.create_future()
        self._requests[number] = answer
        self._link.post(request)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError as exc:
            raise SandboxError("The sandbox does not answer", f"for {ANSWER_SECONDS:.0f} s") from exc

    def _done(self, answer: Answer | AgentProcess | AgentTerminal) -> bool:
        return isinstance(answer, messages.Done) and answer.all

    def _gone(self) -> SandboxError:
        return SandboxError("The sandbox is gone", self.why)

    def _fail(self, error: SandboxError) -> None:
        asked, self._requests = self._requests, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(error)

    def _on_lost(self, reason: str) -> None:
        self.why = reason
        self._report_lost(reason)

    def _on_answer(self, answer: Answer, fds: list[int]) -> bool:
        match answer:
            case messages.Known():
                return self._on_known(answer)
            case messages.Connection():
                return self._on_connection(fds)
            case messages.Done() | messages.Room() | messages.Moment() | messages.Attached():
                return self._on_reply(answer, fds)
            case _:
                process = self._processes.get(answer.id)
                if process is not None:
                    return self._on_program(process, answer)
                self._ended_elsewhere += 1  # an earlier server's, each of which ends once
                return isinstance(answer, messages.Ended) and self._ended_elsewhere <= _MOST_KNOWN

    def _on_connection(self, fds: list[int]) -> bool:
        if not self._awaited or self._accept is None or not fds or not is_proxy_connection(fds[0]):
            return False
        self._awaited -= 1
        self._accept(fds.pop())
        return True

    def _on_dropped(self, answer: Answer) -> bool:
        if isinstance(answer, messages.Connection) and self._awaited:
            self._awaited -= 1
            # Its program sees that the connection ends. Another one may come when files have been closed, perhaps.
            self._loop.call_later(DROPPED_SECONDS, self._ask_for_connections, 1)
            return True
        asked = self._requests.pop(answer.id, None) if isinstance(answer, messages.Attached) else None
        if asked is None:
            return False
        if not asked.done():
            asked.set_exception(SandboxError("A program cannot be reached", "the server has too many open files"))
        return True

    def _on_known(self, known: Known) -> bool:
        listed = self._listed.get(known.id)
        if listed is None:
            return known.id in self._requests  # its caller was cancelled
        listed.append(known)
        return len(listed) <= _MOST_KNOWN

    def _on_reply(
        self, answer: messages.Done | messages.Room | messages.Moment | messages.Attached, fds: list[int]
    ) -> bool:
        asked = self._requests.get(answer.id)
        if asked is None:
            return False
        if asked.done():
            pass  # its caller was cancelled
        elif not isinstance(answer, messages.Attached):
            asked.set_result(answer)
        elif answer.id in self._attaching and fds and is_pipe_or_terminal(fds[0]):
            self._on_attached(asked, self._attaching[answer.id], fds)
        else:
            return False  # the request fails with the connection
        del self._requests[answer.id]
        return True

    def _on_attached(
        self, asked: asyncio.Future[Answer | AgentProcess | AgentTerminal], known: Known | None, fds: list[int]
    ) -> None:
        if known is not None:
            process = self._process(known.program, known.name, fds.pop(), tty=known.tty)
            process.on_started(known.pid)
            asked.set_result(process)
            return
        try:
            terminal = self._terminal(fds[0], open_slave(fds[0]))
        except OSError as exc:  # a program may have made it exclusive (TIOCEXCL)
            asked.set_exception(SandboxError("The terminal cannot be opened", str(exc.strerror)))
            return
        fds.clear()
        asked.set_result(terminal)

    def _on_program(
        self, process: AgentProcess, answer: messages.Started | messages.Refused | messages.Killed | messages.Ended
    ) -> bool:
        match answer:
            case messages.Started():
                return process.on_started(answer.pid)
            case messages.Refused():
                return process.on_refused(answer)
            case messages.Killed():
                return process.on_killed(everything=answer.all)
            case messages.Ended():
                if not process.pid or process.ending:
                    return False
                process.ending = True
                self._judge(_status(answer.code, answer.signal), process.oom_kills, process.on_ended)
                return True


def memory_file(name: str, content: bytes) -> int:
    """Make a file without a path, positioned at its beginning; the caller closes the descriptor."""
    fd = os.memfd_create(name)
    try:
        with open(fd, "wb", closefd=False) as stream:
            stream.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _status(code: int | None, number: int | None) -> ExitStatus:
    return ExitStatus(code=code) if number is None else ExitStatus(signal=number)
