"""What is noted of a session is read again by the next server, or said to be damaged."""

import asyncio
import json
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest
from msgspec import structs

from kernelbridge.errors import ConfigError
from kernelbridge.identity.principal import Principal
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.runtimes.contract import Limits, Moment, Sandbox
from kernelbridge.workspace.adoption.record import PreviousSession, Record, count_previous_sandboxes, previous_sessions
from kernelbridge.workspace.adoption.session_state import RunningCell, RunningCommand, ShellState, TerminalState
from kernelbridge.workspace.options import Choice
from kernelbridge.workspace.session_key import SessionKey
from tests.unit.workspace.test_workspace_faults import FACTS

KEY = SessionKey(Principal("Ada"), "s")
CHOICE = Choice(Limits(memory=1 << 28, cpus=0.5, pids=64), "image:1", "python3", MappingProxyType({"A": "ß"}))
KERNEL = KernelIdentity(FACTS.kernelspecs["python3"], 3, "key", "route", True, True, True, "exec:7")  # noqa: FBT003

A, B = (TerminalState(name, f"exec:{name}", 24, 80) for name in "ab")
SHELL = ShellState("exec:8", "/dev/pts/0", "/dev/pts/1", ("/dev/pts/2",))


class Known:
    """A sandbox, as far as it is noted."""

    id = "box"
    facts = FACTS


SANDBOX = cast("Sandbox", Known())


class AtOnce(Executor):
    """Works when it is asked to, so that files can be looked at without waiting."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args, **kwargs))
        return done


class LastFirst(Executor):
    """Starts with what was asked for last, as threads may."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], Any]] = []

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked.append(partial(work, *args, **kwargs))
        return Future()

    def work(self) -> None:
        while self.asked:
            self.asked.pop()()


def running(msg_id: str, timeout: float | None = None, began: float = 0.0) -> RunningCell:
    return RunningCell(
        msg_id,
        None,
        streams=False,
        asks=False,
        since=0.0,
        began=began,
        timeout=timeout,
        left=timeout,
        counted=began,
    )


def new(directory: Path, key: SessionKey = KEY, seq: Callable[[], int] = lambda: 1000) -> Record:
    return Record(directory, key, created="then", runtime="docker", seq=seq, executor=AtOnce(), max_output=100)


def only(directory: Path) -> PreviousSession:
    (left,) = previous_sessions(directory)
    return left


def test_what_was_to_be_written_does_not_come_back_after_the_removal(tmp_path: Path) -> None:
    executor = LastFirst()
    record = Record(tmp_path, KEY, created="then", runtime="docker", seq=int, executor=executor)
    record.opened(CHOICE, SANDBOX)
    executor.work()
    assert list(tmp_path.iterdir())
    record.write()
    record.remove()
    executor.work()
    assert list(tmp_path.iterdir()) == []


def test_a_session_of_an_issuers_principal_is_read_again(tmp_path: Path) -> None:
    """And another than that of the plain name."""
    theirs = SessionKey(Principal("Ada", "https://login.example.org"), KEY.session_id)
    for key in (KEY, theirs):
        new(tmp_path, key).opened(CHOICE, SANDBOX)
    assert {found.key for found in previous_sessions(tmp_path)} == {KEY, theirs}


def test_how_long_a_session_stays_open_is_recorded(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.set_linger(1.0, keep_while_running=False)  # nothing is recorded before there is a sandbox
    record.opened(CHOICE, SANDBOX, linger=60.0, keep_while_running=True)
    assert (only(tmp_path).state.linger, only(tmp_path).state.keep_while_running) == (60.0, True)
    record.set_linger(5.0, keep_while_running=False)
    assert (only(tmp_path).state.linger, only(tmp_path).state.keep_while_running) == (5.0, False)
    record.leave()
    another = new(tmp_path)
    another.adopt(only(tmp_path).state, None)
    assert only(tmp_path).state.linger == 5.0


def test_an_open_session_is_read_as_it_was_recorded(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.opened(CHOICE, SANDBOX)
    record.kernel_started(KERNEL)
    record.set_shell(SHELL)
    cell = RunningCell("msg_1", "r\n", True, True, 12.5, 7.5, 5.0, 5.0, 7.5)  # noqa: FBT003 - streams, asks
    record.begins(cell)
    record.leave()
    left = only(tmp_path)
    assert left.key == KEY
    assert left.state.kernel == KERNEL
    assert (left.state.had_shell, left.state.shell) == (True, SHELL)
    assert (left.state.seq, left.state.created, left.state.incarnation, left.state.lost) == (1000, "then", 3, None)
    assert left.state.choice == CHOICE
    known = left.state.sandbox
    assert known is not None
    assert (known.sandbox_id, known.facts) == ("box", FACTS)
    assert left.cell == cell
    assert (left.command, left.state.terminals) == (None, ())


def test_commands_and_terminals_are_recorded_until_their_end(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.opened(CHOICE, SANDBOX)
    command = RunningCommand(
        "c",
        False,  # noqa: FBT003 - streams
        since=1.0,
        began=2.0,
        timeout=3.0,
        nonce="n",
        moment=Moment(4, 5),
    )
    record.command_begins(structs.replace(command, request_id="r" * 100))
    record.command_ended()
    record.set_terminals([A, B])
    left = only(tmp_path)
    assert (left.command, left.state.terminals) == (None, (A, B))
    record.command_begins(command)
    record.command_wrote(b"a" * 60)
    record.command_wrote(b"b" * 60)
    record.leave()
    left = only(tmp_path)
    assert left.command == command
    assert left.output == b"a" * 60 + b"b" * 40
    assert command.time_left(4.0) == 1.0
    # What an earlier server has noted is kept until its end has been told, also when the sandbox is gone.
    record = new(tmp_path)
    record.adopt(left.without_sandbox().state, None)
    left = only(tmp_path)
    assert (left.command is None, left.state.terminals) == (False, (A, B))
    record.shells_reported()
    left = only(tmp_path)
    assert (left.command, left.state.terminals) == (None, ())


def test_terminals_end_with_their_sandbox(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.opened(CHOICE, SANDBOX)
    record.set_terminals([A])
    record.opened(CHOICE, SANDBOX)
    assert only(tmp_path).state.terminals == ()


def test_sessions_in_the_sandboxes_of_a_runtime_are_counted(tmp_path: Path) -> None:
    for number, runtime in enumerate(("docker", "docker", "local")):
        key = SessionKey(Principal("Ada"), f"s{number}")
        record = Record(tmp_path, key, created="then", runtime=runtime, seq=int, executor=AtOnce())
        record.opened(CHOICE, SANDBOX)
    assert count_previous_sandboxes(tmp_path, "docker") == 2
    new(tmp_path, SessionKey(Principal("Ada"), "s0")).adopt(only_of(tmp_path, "s0").without_sandbox().state, None)
    assert count_previous_sandboxes(tmp_path, "docker") == 1


def only_of(directory: Path, session: str) -> PreviousSession:
    (left,) = [left for left in previous_sessions(directory) if left.key.session_id == session]
    return left


def test_only_the_server_can_read_a_record(tmp_path: Path) -> None:
    earlier = os.umask(0)
    try:
        new(tmp_path).opened(CHOICE, SANDBOX)
    finally:
        os.umask(earlier)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_cell_that_is_answered_is_not_left(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.opened(CHOICE, SANDBOX)
    for msg_id in ("x" * 1000, "y" * 100):
        record.begins(running(msg_id))
        record.ended()
    assert only(tmp_path).cell is None
    record.begins(running("short"))
    cell = only(tmp_path).cell
    assert cell is not None
    assert cell.msg_id == "short"


def test_the_time_that_a_cell_has_left_is_recorded(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.opened(CHOICE, SANDBOX)
    record.counts(1.0, 0.0)
    assert only(tmp_path).cell is None
    record.begins(running("msg_1", 5.0, 100.0))

    def left_at(now: float) -> float | None:
        cell = only(tmp_path).cell
        assert cell is not None
        return cell.time_left(now)

    assert [left_at(now) for now in (102.0, 106.0, 3.0)] == [3.0, 0.0, 5.0]
    record.counts(3.0, None)
    assert left_at(10_000.0) == 3.0
    record.counts(3.0, 10_000.0)
    assert left_at(10_001.0) == 2.0
    session = only(tmp_path)
    assert session.cell is not None
    record.leave()
    again = new(tmp_path)
    again.adopt(session.state, session.cell)
    again.counts(1.5, 20_000.0)
    assert left_at(20_000.0) == 1.5
    assert only(tmp_path).cell == structs.replace(session.cell, left=1.5, counted=20_000.0)
    again.ended()
    again.counts(1.0, 0.0)
    assert only(tmp_path).cell is None
    again.begins(running("msg_2"))
    assert left_at(10.0) is None


def test_a_loss_is_recorded_until_it_is_reported(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.opened(CHOICE, SANDBOX)
    record.kernel_started(KERNEL)
    record.kernel_ended("ended")
    state = only(tmp_path).state
    assert (state.kernel, state.lost, state.incarnation) == (None, "ended", 3)
    record.sandbox_lost()
    assert only(tmp_path).state.sandbox is None
    record.opened(CHOICE, SANDBOX)
    state = only(tmp_path).state
    assert (state.lost, state.incarnation) == ("ended", 3)
    record.loss_reported()
    assert only(tmp_path).state.lost is None


def test_without_its_sandbox_an_interpreter_is_lost(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.opened(CHOICE, SANDBOX)
    assert only(tmp_path).without_sandbox().state.lost is None
    record.kernel_started(KERNEL)
    state = only(tmp_path).without_sandbox().state
    assert (state.sandbox, state.kernel, state.lost) == (None, None, "ended with its sandbox")


def test_a_removed_record_is_not_written_again(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.opened(CHOICE, SANDBOX)
    record.remove()
    record.kernel_ended("ended")
    record.begins(running("m"))
    record.write()
    record.opened(CHOICE, SANDBOX)  # by a start that was under way
    assert list(tmp_path.iterdir()) == []
    record.remove()


def test_nothing_is_recorded_before_there_is_a_sandbox(tmp_path: Path) -> None:
    record = new(tmp_path)
    record.write()
    record.kernel_started(KERNEL)
    record.begins(running("m"))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    record = new(tmp_path / "absent")
    record.opened(CHOICE, SANDBOX)
    record.begins(running("m"))
    record.ended()
    record.remove()


def damaged(content: Any) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", damaged([]), damaged({"version": 2}), b"[" * 10**6, damaged({"version": 3})]
)
def test_a_damaged_record_is_removed_and_the_others_are_read(tmp_path: Path, content: bytes) -> None:
    other = SessionKey(Principal(), "other")
    for key in (KEY, other):
        new(tmp_path, key).opened(CHOICE, SANDBOX)
    (tmp_path / f"{KEY.workspace_id}.json").write_bytes(content)
    assert only(tmp_path).key == other
    assert sorted(path.stem for path in tmp_path.iterdir()) == [other.workspace_id] * 2


def test_a_record_of_another_version_is_not_read(tmp_path: Path) -> None:
    new(tmp_path).opened(CHOICE, SANDBOX)
    path = tmp_path / f"{KEY.workspace_id}.json"
    path.write_bytes(path.read_bytes().replace(b'"version":3', b'"version":2'))
    assert list(previous_sessions(tmp_path)) == []


def test_a_note_under_another_name_is_not_read(tmp_path: Path) -> None:
    new(tmp_path).opened(CHOICE, SANDBOX)
    for suffix in (".json", ".cell"):
        other = SessionKey(Principal("Eve"), "s").workspace_id
        (tmp_path / f"{KEY.workspace_id}{suffix}").rename(tmp_path / f"{other}{suffix}")
    assert list(previous_sessions(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_unfinished_files_of_a_killed_server_are_removed(tmp_path: Path) -> None:
    new(tmp_path).opened(CHOICE, SANDBOX)
    for name in ("0.part", "1.cell", f"{KEY.workspace_id}.part"):
        (tmp_path / name).write_bytes(b"x")
    assert only(tmp_path).key == KEY
    assert len(list(tmp_path.iterdir())) == 2


def test_a_session_without_a_cells_file_is_read(tmp_path: Path) -> None:
    new(tmp_path).opened(CHOICE, SANDBOX)
    (tmp_path / f"{KEY.workspace_id}.cell").unlink()
    assert (only(tmp_path).key, only(tmp_path).cell) == (KEY, None)


def test_a_record_that_cannot_be_read_is_kept_and_reported(tmp_path: Path) -> None:
    note = tmp_path / f"{KEY.workspace_id}.json"
    note.mkdir()  # EISDIR, as good as EIO
    with pytest.raises(ConfigError, match="remove the file"):
        only(tmp_path)
    assert note.exists()


def test_a_cells_file_that_could_not_be_made_is_made_later(tmp_path: Path) -> None:
    record = new(tmp_path / "later")
    record.opened(CHOICE, SANDBOX)
    (tmp_path / "later").mkdir()
    record.write()
    record.begins(running("msg_1"))
    cell = only(tmp_path / "later").cell
    assert cell is not None
    assert cell.msg_id == "msg_1"


async def test_a_hanging_disk_holds_up_only_those_that_wait_for_it(tmp_path: Path) -> None:
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(go_on.wait)
        record = Record(tmp_path, KEY, created="then", runtime="docker", seq=int, executor=executor)
        record.opened(CHOICE, SANDBOX)
        record.kernel_started(KERNEL)
        written = asyncio.ensure_future(record.written())
        await asyncio.wait({written}, timeout=0.05)
        assert (written.done(), list(previous_sessions(tmp_path))) == (False, [])
        go_on.set()
        await asyncio.wait_for(written, 5)
        assert only(tmp_path).state.kernel == KERNEL


async def test_a_note_that_is_being_written_when_its_session_is_removed_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, replace = threading.Event(), threading.Event(), Path.replace

    def slow(path: Path, target: Path) -> Path:
        begun.set()
        go_on.wait(5)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", slow)
    with ThreadPoolExecutor(4) as executor:
        record = Record(tmp_path, KEY, created="then", runtime="docker", seq=int, executor=executor)
        record.opened(CHOICE, SANDBOX)
        await asyncio.to_thread(begun.wait, 5)
        record.write()
        record.remove()
        removed = asyncio.ensure_future(record.written())
        await asyncio.wait({removed}, timeout=0.1)
        go_on.set()
        await asyncio.wait_for(removed, 5)
    assert list(tmp_path.iterdir()) == []
