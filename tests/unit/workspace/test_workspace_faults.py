"""A workspace over a runtime that fails: every request is answered, every close ends, nothing is started twice."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest

from kernelbridge.errors import (
    KernelBridgeError,
    LimitExceeded,
    RuntimeUnavailable,
    SandboxError,
    SessionClosed,
)
from kernelbridge.identity.principal import Principal
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.runtimes.contract import (
    SHARED_PATH,
    WORKSPACE_PATH,
    ExitStatus,
    Limits,
    PreviousSandbox,
    RuntimeInfo,
    SandboxSpec,
)
from kernelbridge.runtimes.facts import Facts, KernelSpec, PythonFacts
from kernelbridge.server.previous_clients import PreviousClient, PreviousClients
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.adoption.session_state import VERSION, SessionState
from kernelbridge.workspace.cells.run import Job
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.lifecycle.admission import REOPENED
from kernelbridge.workspace.options import Choice
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.workspace import Workspace
from tests.unit.unpaused import Unpaused, host_shared
from tests.unit.workspace.small import SMALL

FACTS = Facts(
    uid=1000,
    gid=100,
    env=MappingProxyType({"PATH": "/usr/bin"}),
    python=PythonFacts(
        "/usr/bin/python3", (3, 11), user_site=True, site_packages=(), base_executable="/usr/bin/python3"
    ),
    kernelspecs=MappingProxyType({"python3": KernelSpec("python3", ("python3",), "python", "Python 3")}),
    shell="/bin/sh",
)


class BrokenSandbox(Unpaused):
    """StartQueue nothing, and cannot be destroyed as often as it is told."""

    def __init__(self, runtime: "FaultyRuntime") -> None:
        self.id = "broken"
        self.facts = FACTS
        self.workspace_path = WORKSPACE_PATH
        self.shared = host_shared(Path(SHARED_PATH))
        self.runtime = runtime
        self.ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    async def exec(self, *_args: object, **_options: object) -> Any:
        raise SandboxError("The program cannot be started", "the sandbox is broken")

    def open_terminal(self, rows: int = 24, cols: int = 80) -> Any:
        raise SandboxError("The terminal cannot be opened", f"the sandbox is broken, and has none of {rows}x{cols}")

    def oom_kills(self) -> int:
        return 0

    def watch_memory(self, on_kill: Callable[[], None]) -> None:
        """Tell nothing: nobody limits its memory."""

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.ended)

    async def destroy(self) -> None:
        self.runtime.destroyed += 1
        if self.runtime.failing_destroys:
            self.runtime.failing_destroys -= 1
            raise RuntimeUnavailable("The engine does not answer")
        if not self.ended.done():
            self.ended.set_result(ExitStatus(signal=9))


class FaultyRuntime:
    """Makes broken sandboxes, slowly if `gate` is closed, or none."""

    def __init__(self) -> None:
        self.info = RuntimeInfo("faulty", "", "")
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuse: KernelBridgeError | None = None
        self.failing_destroys = 0
        self.created = 0
        self.destroyed = 0
        self.looked: list[str] = []
        """For what earlier servers left."""

    async def prepare(self, _image: str | None = None) -> Facts:
        return FACTS

    async def create(self, _spec: SandboxSpec) -> Any:
        await self.gate.wait()
        if self.refuse is not None:
            raise self.refuse
        self.created += 1
        return BrokenSandbox(self)

    async def adopt(self, _previous: Mapping[str, PreviousSandbox]) -> Mapping[str, Any]:
        self.looked.append("adopt")
        return {}

    async def reclaim(self) -> int:
        self.looked.append("reclaim")
        return 0

    async def aclose(self, *, keep: bool = False) -> None:
        pass


KEY = SessionKey(Principal("u"), "s")


class Answers:
    """Collects what `done` is called with."""

    def __init__(self) -> None:
        self.all: list[Outcome | CommandOutcome | KernelBridgeError] = []
        self._more = asyncio.Event()

    def __call__(self, answer: Outcome | CommandOutcome | KernelBridgeError) -> None:
        self.all.append(answer)
        self._more.set()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.all) < count:
                self._more.clear()
                await self._more.wait()


@pytest.fixture
async def runtime() -> FaultyRuntime:
    return FaultyRuntime()


@pytest.fixture
async def registry(runtime: FaultyRuntime, tmp_path: Path) -> AsyncIterator[Registry]:
    data = DataDirectory.open(tmp_path / "data")
    with ThreadPoolExecutor(2) as executor:
        made = Registry(
            runtime=runtime,
            data=data,
            settings=SMALL,
            executor=executor,
        )
        yield made
        await made.aclose()
    data.close()


async def test_when_no_sandbox_can_be_made_all_waiting_requests_fail(
    registry: Registry, runtime: FaultyRuntime
) -> None:
    runtime.refuse = RuntimeUnavailable("The engine does not answer", "start it")
    workspace, cells, commands = registry.attach(KEY, "c"), Answers(), Answers()
    for _ in range(3):
        workspace.executions.submit(Job(Cell(code="1"), cells))
    workspace.commands.submit("ls", commands)
    await cells.wait(3)
    await commands.wait(1)
    assert all(isinstance(answer, RuntimeUnavailable) for answer in (*cells.all, *commands.all))
    # And the next message tries again.
    workspace.executions.submit(Job(Cell(code="1"), cells))
    await cells.wait(4)


async def test_past_the_limit_a_request_is_refused_and_the_others_stay(
    registry: Registry, runtime: FaultyRuntime
) -> None:
    runtime.gate.clear()
    workspace, cells = registry.attach(KEY, "c"), Answers()
    for _ in range(3):
        workspace.executions.submit(Job(Cell(code="1"), cells))
    with pytest.raises(LimitExceeded):
        workspace.executions.submit(Job(Cell(code="1"), cells))
    runtime.refuse = RuntimeUnavailable("The engine does not answer")
    runtime.gate.set()
    await cells.wait(3)


async def test_a_close_during_the_start_answers_and_destroys_what_was_made(
    registry: Registry, runtime: FaultyRuntime
) -> None:
    runtime.gate.clear()
    workspace, cells = registry.attach(KEY, "c"), Answers()
    workspace.executions.submit(Job(Cell(code="1"), cells))
    registry.detach("c")
    await cells.wait(1)
    assert isinstance(cells.all[0], Outcome)
    assert cells.all[0].cause == "session_closed"
    runtime.gate.set()
    await registry.aclose()
    assert runtime.created == runtime.destroyed


async def test_a_session_closed_while_its_start_waits_is_not_started(
    registry: Registry, runtime: FaultyRuntime
) -> None:
    runtime.gate.clear()
    cells = Answers()
    for session in ("first", "second"):
        registry.attach(SessionKey(Principal("u"), session), session).executions.submit(Job(Cell(code="1"), cells))
    while not registry._starts.waiting:
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0)
    registry.detach("second")
    await cells.wait(1)
    runtime.gate.set()
    await registry.aclose()
    assert runtime.created == 1


async def test_a_sandbox_that_cannot_be_destroyed_prevents_neither_close_nor_return(
    registry: Registry, runtime: FaultyRuntime
) -> None:
    runtime.failing_destroys = 1
    first, answers = registry.attach(KEY, "c"), Answers()
    first.commands.submit("ls", answers)
    await answers.wait(1)
    registry.detach("c")
    await first.close()
    second = registry.attach(KEY, "d")
    assert second is not first
    second.commands.submit("ls", answers)
    await answers.wait(2)
    assert isinstance(answers.all[1], SandboxError)


async def test_a_question_right_before_the_close_is_answered(registry: Registry) -> None:
    """Both come in one read from the connection: nothing has been started for the question yet."""
    workspace = registry.attach(KEY, "c")
    answers: asyncio.Queue[object] = asyncio.Queue()
    closed: asyncio.Queue[object] = asyncio.Queue()
    workspace.executions.question("x", lambda help_: help_.is_complete("x"), answers.put_nowait)
    registry.close(KEY, PreviousClient(Principal(), registry), delete_files=False, done=closed.put_nowait)
    async with asyncio.timeout(20):
        await closed.get()
    assert isinstance(answers.get_nowait(), SessionClosed)
    assert answers.empty()


async def test_one_that_has_ended_leaves_the_end_of_its_successor_alone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()
    step = Workspace._step

    async def hold_the_second(workspace: Workspace, name: str, work: Awaitable[object]) -> None:
        await step(workspace, name, work)
        if name == "predecessor":
            await asyncio.wait_for(go.wait(), 20)

    monkeypatch.setattr(Workspace, "_step", hold_the_second)
    closed: list[asyncio.Future[object]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    try:
        for done in closed:
            registry.attach(KEY, "c")
            registry.close(KEY, PreviousClient(Principal(), registry), delete_files=False, done=done.set_result)
        await asyncio.wait_for(closed[0], 20)
        assert registry.closing(KEY)
        assert registry.in_use() == {KEY}
    finally:
        go.set()
    await asyncio.wait_for(closed[1], 20)
    assert not registry.closing(KEY)


async def test_a_note_of_the_close_is_written_and_deleted_with_the_files(
    registry: Registry, runtime: FaultyRuntime
) -> None:
    """Its sandbox ran, and its shell could not be started: nothing is lost, but who follows it is told."""
    answers = Answers()
    registry.attach(KEY, "c").commands.submit("ls", answers)
    await answers.wait(1)
    assert runtime.created == 1
    registry.detach("c")
    assert registry.find(KEY) is not None
    await until(lambda: registry.find(KEY) is None)
    assert registry.was_closed(KEY)
    assert not registry.was_closed(SessionKey(Principal("another"), "s"))
    assert registry.find(KEY) is None
    workspace = registry.attach(KEY, "c")
    assert not registry.was_closed(KEY)  # it is open
    assert (workspace.executions.has_lost, workspace.commands.has_lost) == (False, False)
    closed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    registry.close(KEY, PreviousClient(Principal(), registry), delete_files=True, done=closed.set_result)
    assert not registry.was_closed(KEY)  # also while the files are being deleted
    await asyncio.wait_for(closed, 20)
    assert not registry.was_closed(KEY)


async def test_a_slow_disk_holds_up_the_end_of_a_session_and_nothing_else(
    registry: Registry, runtime: FaultyRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the note of the end is on disk, the record stays: after a crash, the next server finds one of the two."""
    writing, go = asyncio.Event(), threading.Event()
    loop, write_closed_note = asyncio.get_running_loop(), DataDirectory.write_closed_note

    def slow(data: DataDirectory, key: SessionKey, content: bytes) -> None:
        loop.call_soon_threadsafe(writing.set)
        assert go.wait(20)
        write_closed_note(data, key, content)

    monkeypatch.setattr(DataDirectory, "write_closed_note", slow)
    answers = Answers()
    registry.attach(KEY, "c").commands.submit("ls", answers)
    await answers.wait(1)
    record = registry._data.state / f"{KEY.workspace_id}.json"
    note = registry._data.files(KEY).parent / "closed.json"
    try:
        registry.detach("c")
        await asyncio.wait_for(writing.wait(), 20)
        assert registry.was_closed(KEY)
        registry.attach(SessionKey(Principal("another"), "s"), "d").commands.submit("ls", answers)
        await answers.wait(2)
        assert (record.exists(), note.exists(), runtime.destroyed) == (True, False, 0)
    finally:
        go.set()
    await until(lambda: not registry.closing(KEY))
    assert (record.exists(), note.exists()) == (False, True)


async def test_a_session_that_an_earlier_server_had_begun_to_close_continues(
    registry: Registry, runtime: FaultyRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That server wrote how it was closed, and was killed before it removed the record."""
    answers = Answers()
    registry.attach(KEY, "c").commands.submit("ls", answers)
    await answers.wait(1)
    with monkeypatch.context() as killed:
        killed.setattr(Record, "_unlink", lambda _record: None)
        await registry.aclose()
    assert registry.was_closed(KEY)
    following = Registry(
        runtime=runtime,
        data=registry._data,
        settings=SMALL,
        executor=registry._executor,
    )
    await following.adopt(PreviousClients(following))
    assert runtime.looked == ["adopt", "reclaim"]  # `reclaim` destroys what is not adopted
    assert following.find(KEY) is not None
    assert following._notes.get(KEY) is None
    await following.aclose()


class DeafSandbox(BrokenSandbox):
    """Its agent answers nothing, until it ends."""

    resuming = False

    async def resume(self) -> None:
        self.resuming = True
        await self.wait()
        raise SandboxError("The sandbox is gone")

    async def programs(self) -> list[str]:
        return []


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("keep", [False, True])
async def test_a_take_over_that_hangs_holds_up_no_stop(
    registry: Registry, runtime: FaultyRuntime, *, keep: bool, begun: bool
) -> None:
    workspace, sandbox = registry.attach(KEY, "c"), DeafSandbox(runtime)
    workspace.sandbox.adopt(
        sandbox,
        SessionState(
            version=VERSION,
            principal="u",
            session_id="s",
            created="",
            runtime="faulty",
            seq=0,
            choice=Choice(Limits()),
            sandbox=PreviousSandbox(sandbox.id, FACTS),
            kernel=None,
            incarnation=0,
            had_shell=False,
            lost=None,
        ),
    )
    answers = Answers()
    workspace.executions.submit(Job(Cell(code="1"), answers))
    if begun:
        await until(lambda: sandbox.resuming)
    try:
        async with asyncio.timeout(20):
            await (registry.leave() if keep else registry.aclose())
        assert sandbox.ended.done() == (not keep)
        assert runtime.created == 0
    finally:
        await sandbox.destroy()


async def test_a_note_that_cannot_be_read_or_written_costs_nothing(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (b"", b"[]", b'{"closed_at": 5}', b"[" * 100_000):
        monkeypatch.setattr(DataDirectory, "read_closed_note", lambda _data, _key, content=content: content)
        assert not registry.was_closed(KEY)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DataDirectory, "read_closed_note", full)
    monkeypatch.setattr(DataDirectory, "write_closed_note", full)
    monkeypatch.setattr(DataDirectory, "remove_closed_note", full)
    answers = Answers()
    registry.attach(KEY, "c").commands.submit("ls", answers)
    await answers.wait(1)
    registry.detach("c")
    await until(lambda: registry.find(KEY) is None and not registry.closing(KEY))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0.001)


async def test_a_session_is_not_opened_and_closed_without_end_while_it_is_being_closed(
    registry: Registry, runtime: FaultyRuntime
) -> None:
    runtime.gate.clear()
    cells: Answers = Answers()
    closed: asyncio.Queue[object] = asyncio.Queue()
    turns = REOPENED + 1
    for turn in range(turns):
        registry.attach(KEY, "c").executions.submit(Job(Cell(code="1"), cells))
        registry.close(KEY, PreviousClient(Principal(), registry), delete_files=turn % 2 == 0, done=closed.put_nowait)
    with pytest.raises(LimitExceeded, match="too often"):
        registry.attach(KEY, "c")
    runtime.gate.set()
    async with asyncio.timeout(20):
        for _ in range(turns):
            await closed.get()
    assert len(cells.all) == turns
    assert registry.attach(KEY, "c") is registry.find(KEY)


async def test_a_requester_that_cannot_take_its_answer_holds_up_no_other(
    registry: Registry, runtime: FaultyRuntime
) -> None:
    runtime.refuse = RuntimeUnavailable("The engine does not answer")
    workspace, cells = registry.attach(KEY, "c"), Answers()

    def gone(_answer: object) -> None:
        raise ConnectionResetError

    workspace.executions.submit(Job(Cell(code="1"), gone))
    workspace.executions.submit(Job(Cell(code="1"), cells))
    await cells.wait(1)


async def test_a_server_that_stops_takes_no_more_sessions(registry: Registry) -> None:
    await registry.aclose()
    with pytest.raises(SandboxError, match="stopping"):
        registry.attach(KEY, "c")


class Told(PreviousClient):
    """A connection that remembers what it is told."""

    open = True

    def __init__(self, name: str) -> None:
        super().__init__(Principal(), cast("Registry", None))
        self.id = name
        self.frames: list[bytes] = []

    def put_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> None:
        del unsent
        self.frames.append(frame)

    def offer_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> bool:
        self.put_frame(frame, unsent)
        return True


async def test_only_the_requester_gets_the_reply_of_a_second_close(registry: Registry) -> None:
    first, second, third = Told("first"), Told("second"), Told("third")
    workspace = registry.attach(KEY, "first")
    cells = Answers()
    workspace.executions.submit(Job(Cell(code="1"), cells))
    await cells.wait(1)
    for listener in (first, second, third):
        registry.attach(KEY, listener.id)
        workspace.feed.join(listener)
    closed = [asyncio.get_running_loop().create_future() for _ in range(2)]
    registry.close(KEY, first, delete_files=False, done=closed[0].set_result)
    before = len(second.frames)
    registry.close(KEY, second, delete_files=False, done=closed[1].set_result)
    await asyncio.wait_for(asyncio.gather(*closed), 20)
    assert first.frames == []
    assert second.frames[before:] == []
    assert b'"status":"closed"' in third.frames[-1]
