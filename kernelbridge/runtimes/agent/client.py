"""Starting, finding and ending the programs of one sandbox, through its agent; the same code for every runtime.

A runtime uses it like this:

    directory = AgentDirectory(spec.sockets)
    directory.prepare()                                   # before the sandbox is started
    …                                                     # start it, with `agent_command(…)` as its first process
    client = AgentClient(await directory.connect(gone), facts, judge=…, on_lost=…)
    await client.until_ready(seconds)
    client.outlive(seconds)                               # how long it may go on without a server; 0: not at all
    process = await client.spawn(["sh"], env={…}, cwd="/workspace", tty=True, name="shell")

A later server does the same with `directory.reopen()`, then `known()` and `attach()`. One that leaves its sandboxes
calls `leave()`; one that destroys them ends the sandbox, and when that is certain, calls `ended()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent import messages
from kernelbridge.runtimes.agent.link import AgentLink
from kernelbridge.runtimes.agent.messages import NAME_LENGTH, Answer, Known, Request
from kernelbridge.runtimes.agent.process import AgentProcess
from kernelbridge.runtimes.agent.terminal import AgentTerminal, open_slave, open_terminal, stop_echo
from kernelbridge.runtimes.contract import ExitStatus, Moment, Terminal
from kernelbridge.runtimes.facts import Facts

START_SECONDS = 30.0
"""How long an agent has to come up, or to start a program; a machine that needs longer is not usable."""
ANSWER_SECONDS = 30.0
"""How long it has for anything else. It gives up ending processes after eleven."""
_MOST_KNOWN = 4096
"""Programs that an agent may say it has."""

Judge = Callable[[ExitStatus, int, Callable[[ExitStatus], None]], None]
"""Called with how a program ended, and how often the sandbox had been out of memory when it began. It calls the third
argument once, with the status as it is to be told: `oom` set, if the kernel's out-of-memory killer ended it."""


def agent_source() -> bytes:
    """Return the agent's program text: one file, for Python 3.8 and later."""
    return resources.files("kernelbridge.guest").joinpath("agent.py").read_bytes()


def agent_command(
    python: str, file: str, directory: str, *, rlimits: Mapping[str, int], start: float, keep: Sequence[int] = ()
) -> list[str]:
    """Return the command of a sandbox's first process.

    Arguments: the interpreter and the file with `agent_source()`, as the sandbox sees them; the directory of
    `AgentDirectory`, as the sandbox sees it (`<sockets>/agent`); limits of each process, named as in setrlimit(2)
    without `RLIMIT_`; seconds after which it ends if no server has come; and descriptors that it shall hold and pass
    to nobody.
    """
    config = {"directory": directory, "start": start, "limits": dict(rlimits), "keep": list(keep)}
    return [python, "-I", "-S", file, json.dumps(config)]


class AgentClient:
    """The connection to one sandbox's agent, and the programs that it runs.

    `control` is what `AgentDirectory.connect` returned; owned from now on. `facts` say who runs in the sandbox.
    `judge` decides what a SIGKILL was; `ooms` counts what it compares with. `on_lost` is called once, with the reason,
    when the connection breaks: its sandbox cannot be used any more and has to be ended, and then `ended` be called.
    Every method that asks something raises `SandboxError` when the connection is or gets lost.
    """

    def __init__(
        self,
        control: socket.socket,
        facts: Facts,
        *,
        judge: Judge,
        on_lost: Callable[[str], None],
        ooms: Callable[[], int] = lambda: 0,
    ) -> None:
        self._facts = facts
        self._judge, self._ooms = judge, ooms
        self._tell_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._processes: dict[int, AgentProcess] = {}
        self._asked: dict[int, asyncio.Future[Answer | AgentProcess | AgentTerminal]] = {}
        """Answers that are due; to `Attach` a process, which is there before anything more is told of it."""
        self._attaching: dict[int, Known | None] = {}
        """What is attached; None: a terminal alone."""
        self._listed: dict[int, list[Known]] = {}
        self.why = "it has ended"
        """Why there is no connection any more."""
        self._link = AgentLink(control, on_answer=self._on_answer, on_lost=self._on_lost)

    @property
    def closed(self) -> bool:
        """Whether there is no connection any more."""
        return self._link.closed

    async def until_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait for the agent to answer; raises `SandboxError`. A frozen sandbox's agent answers when it goes on."""
        try:
            async with asyncio.timeout(seconds):
                ready = await asyncio.shield(self._link.ready)
        except TimeoutError as exc:
            raise SandboxError("The sandbox cannot be used", f"its agent gave no answer in {seconds:.0f} s") from exc
        if not ready:
            raise self._gone()

    def outlive(self, seconds: float) -> None:
        """Set for how many seconds the sandbox goes on without a connection, from now on; then it ends itself."""
        self._link.post(messages.Outlive(seconds))

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
        name: str = "",
        terminal: Terminal | None = None,
    ) -> AgentProcess:
        """Start a program as the sandbox's user.

        `env` is all of its environment. Without `tty` its stdin is empty, and stdout and stderr go into one pipe; with
        `terminal`, which is one of `open_terminal`, see `contract.Sandbox.exec`.
        `name` (200 characters at most) is what a later server knows it by. Raises `SandboxError` if it cannot be
        started; when cancelled, it is killed as soon as it runs.
        """
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
            process = self._process(number, name[:NAME_LENGTH], ours, tty=tty)
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
        """Open a terminal that echoes nothing; raises `SandboxError` where there is none left."""
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
        """Go on with a terminal that an earlier server opened; raises `SandboxError`."""
        number = next(self._numbers)
        self._attaching[number] = None
        try:
            taken = await self._ask(number, messages.Take(number, path))
        finally:
            del self._attaching[number]
        if not isinstance(taken, AgentTerminal):
            raise SandboxError("A terminal cannot be found again", f"the agent has no {path!r} any more")
        return taken

    async def known(self) -> list[Known]:
        """List the programs that run, and those that have ended and were not killed: nobody knows of their end yet.

        After another server's connection this has to be asked before anything is spawned.
        """
        number = next(self._numbers)
        self._listed[number] = []
        try:
            await self._ask(number, messages.List(number))
            found = self._listed[number]
        finally:
            del self._listed[number]
        # Numbers are not used twice.
        self._numbers = itertools.count(max([next(self._numbers), *(known.program + 1 for known in found)]))
        return found

    async def attach(self, known: Known) -> AgentProcess:
        """Go on with a program that `known` listed: what it wrote meanwhile is there to be read."""
        if (process := self._processes.get(known.program)) is not None:
            return process
        number = next(self._numbers)
        self._attaching[number] = known
        try:
            attached = await self._ask(number, messages.Attach(number, known.program))
        finally:
            del self._attaching[number]
        if not isinstance(attached, AgentProcess):
            raise SandboxError("A program cannot be found again", f"the agent has no {known.name!r} any more")
        return attached

    # -- all of them ----------------------------------------------------------------

    async def pause(self) -> bool:
        """SIGSTOP every program until all stand still, and say whether they do; if not, all go on."""
        number = next(self._numbers)
        return self._done(await self._ask(number, messages.Pause(number)))

    async def resume(self) -> None:
        """SIGCONT what `pause` stopped."""
        number = next(self._numbers)
        await self._ask(number, messages.Resume(number))

    async def room(self, pid: int = 0) -> tuple[bool | None, bool]:
        """Say whether hardly any process can be started (None if the agent cannot tell), and if `pid` waits for that.

        `pid` is a bash, which sleeps before it tries again to fork.
        """
        number = next(self._numbers)
        answer = await self._ask(number, messages.AskRoom(number, pid))
        return (answer.crowded, answer.waits) if isinstance(answer, messages.Room) else (None, False)

    # -- its end ----------------------------------------------------------------------

    def end(self) -> None:
        """Have the agent end everything and itself, and close the connection. Idempotent."""
        self._link.post(messages.End())
        self._link.close()

    def leave(self) -> None:
        """Close the connection and let everything run for another server. Idempotent.

        What is asked or started at that moment fails; what has not started by then is undone.
        """
        self._link.close()
        self.why = "it is left to another server"
        for process in self._processes.values():
            process.leave(self._gone())
        self._fail(self._gone())

    def ended(self, status: ExitStatus) -> None:
        """Tell every program that the sandbox has ended; `status` says how."""
        self._link.close()
        error = SandboxError("The sandbox is gone", f"{self.why} ({status})")
        for process in list(self._processes.values()):
            process.on_lost(error, ExitStatus(signal=signal.SIGKILL, oom=status.oom, lost=True))
        self._processes.clear()
        self._fail(error)

    # -- helpers ------------------------------------------------------------------------

    def _process(self, number: int, name: str, fd: int, *, tty: bool) -> AgentProcess:
        async def prune(since: Moment | None) -> bool:
            asked = next(self._numbers)
            moment = None if since is None else (since.ticks, since.last)
            try:
                return self._done(await self._ask(asked, messages.Prune(asked, number, moment)))
            except SandboxError:
                if self._link.closed:
                    return True  # all of it ends
                raise

        process = AgentProcess(
            number,
            name,
            fd,
            tty=tty,
            ooms=self._ooms(),
            post_signal=lambda signum: self._link.post(messages.Signal(number, signum)),
            post_kill=lambda: self._link.post(messages.Kill(number)),
            ask_moment=self._moment,
            ask_prune=prune,
            on_finished=lambda: self._processes.pop(number, None),
        )
        self._processes[number] = process
        return process

    def _terminal(self, master: int, slave: int) -> AgentTerminal:
        return AgentTerminal(master, slave, drop=lambda path: self._link.post(messages.Drop(path)))

    async def _moment(self) -> Moment:
        number = next(self._numbers)
        answer = await self._ask(number, messages.AskMoment(number))
        if not isinstance(answer, messages.Moment):
            raise self._gone()
        return Moment(answer.ticks, answer.last)

    def _open_output(self, rows: int, cols: int) -> tuple[int, int]:
        if self._link.ptmx < 0:
            raise SandboxError("A terminal cannot be opened in the sandbox", "it has no /dev/pts/ptmx")
        return open_terminal(self._link.ptmx, rows, cols, uid=self._facts.uid, gid=self._facts.gid)

    async def _ask(self, number: int, request: Request) -> Answer | AgentProcess | AgentTerminal:
        if self._link.closed:
            raise self._gone()
        answer: asyncio.Future[Answer | AgentProcess | AgentTerminal] = self._loop.create_future()
        self._asked[number] = answer
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
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(error)

    def _on_lost(self, reason: str) -> None:
        self.why = reason
        self._tell_lost(reason)

    def _on_answer(self, answer: Answer, fds: list[int]) -> bool:
        match answer:
            case messages.Known():
                return self._on_known(answer)
            case messages.Done() | messages.Room() | messages.Moment() | messages.Attached():
                return self._on_asked(answer, fds)
            case _:
                process = self._processes.get(answer.id)
                if process is None:
                    return isinstance(answer, messages.Ended)  # of an earlier server's, which is not attached yet
                return self._on_program(process, answer)

    def _on_known(self, known: Known) -> bool:
        listed = self._listed.get(known.id)
        if listed is None:
            return known.id in self._asked  # its asker was cancelled
        listed.append(known)
        return len(listed) <= _MOST_KNOWN

    def _on_asked(
        self, answer: messages.Done | messages.Room | messages.Moment | messages.Attached, fds: list[int]
    ) -> bool:
        asked = self._asked.pop(answer.id, None)
        if asked is None:
            return False
        if asked.done():
            return True  # its asker was cancelled
        if not isinstance(answer, messages.Attached):
            asked.set_result(answer)
            return True
        return answer.id in self._attaching and bool(fds) and self._on_attached(asked, self._attaching[answer.id], fds)

    def _on_attached(
        self, asked: asyncio.Future[Answer | AgentProcess | AgentTerminal], known: Known | None, fds: list[int]
    ) -> bool:
        if known is None:
            try:
                terminal = self._terminal(fds[0], open_slave(fds[0]))
            except OSError:
                return False
            fds.clear()
            asked.set_result(terminal)
            return True
        process = self._process(known.program, known.name, fds.pop(), tty=known.tty)
        process.on_started(known.pid)
        asked.set_result(process)
        return True

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
                self._judge(_status(answer.code, answer.signal), process.ooms, process.on_ended)
                return True


def memory_file(name: str, content: bytes) -> int:
    """Make a file that has no path, positioned at its beginning; the caller closes it."""
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
