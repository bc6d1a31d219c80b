"""Output that goes to a file: whole, bounded, and never at the cost of anything else."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.disk.limits import DiskLimits
from kernelbridge.disk.session_disks import SessionDisk, SessionDisks
from kernelbridge.workspace.files import spill as spill_module
from kernelbridge.workspace.files.spill import BACKLOG, KEPT, SpillFile, SpillFiles
from kernelbridge.workspace.files.store import FileLimits
from kernelbridge.workspace.files.versions import Commits
from tests.unit.workspace.files.at_once import Files

LIMIT = 1 << 20


class FrozenDisk(Executor):
    """An executor whose thread does nothing until it thaws."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1)
        self._thawed = threading.Event()
        self.started = threading.Event()

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        def wait_and_call() -> Any:
            self.started.set()
            self._thawed.wait()
            return call(*args, **named)

        return self._threads.submit(wait_and_call)

    def thaw(self) -> None:
        self._thawed.set()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  its base's
        self.thaw()
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


class FullDisk:
    """Takes some bytes, and then no more."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._write = os.write

    def __call__(self, fd: int, data: memoryview) -> int:
        if self._room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(fd, data[: self._room])
        self._room -= written
        return written


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def files(root: Path) -> Files:
    return Files(root, uid=1234, gid=4321, limits=FileLimits(1 << 20, 1 << 20), commits=Commits())


def spills(root: Path, executor: Executor, limit: int = LIMIT) -> SpillFiles:
    return SpillFiles(lambda: files(root), executor, TaskSet(), limit=limit, disk=unlimited(root))


def unlimited(root: Path) -> SessionDisk:
    return SessionDisks(DiskLimits()).session("", root)


def new(root: Path, executor: Executor, limit: int = LIMIT) -> SpillFile:
    spill = spills(root, executor, limit).new("cell")
    assert spill is not None
    return spill


async def test_everything_is_in_the_file_in_order(root: Path, executor: Executor) -> None:
    spill = new(root, executor, 64 << 20)
    lines = [f"line {number} é\n" for number in range(50_000)]
    spill.begin(lines[:10])
    for line in lines[10:]:
        spill.write(line)
    spilled = await spill.finish()
    assert spilled.complete
    assert spilled.path is not None
    assert spilled.path.startswith(".kernelbridge/output/")
    path = root / spilled.path
    assert path.read_text() == "".join(lines)
    if os.geteuid() == 0:
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
    assert path.stat().st_mode & 0o777 == 0o644


async def test_a_file_can_begin_again_or_go(root: Path, executor: Executor) -> None:
    spill = new(root, executor)
    spill.begin(["gone"])
    spill.write("too")
    spill.begin(["kept"])
    spilled = await spill.finish()
    assert spilled.path is not None
    assert (root / spilled.path).read_text() == "kept"
    other = new(root, executor)
    other.begin(["x"])
    other.discard()
    await asyncio.gather(*other._tasks._tasks)
    assert [path.name for path in (root / ".kernelbridge/output").iterdir()] == [Path(spilled.path).name]


async def test_a_file_ends_at_its_limit_between_characters(root: Path, executor: Executor) -> None:
    spill = new(root, executor, 10)
    spill.begin(["éééé"])
    spill.write("1éé")
    spill.write("more")
    spilled = await spill.finish()
    assert not spilled.complete
    assert spilled.path is not None
    assert (root / spilled.path).read_text() == "éééé1"


async def test_without_a_limit_there_is_no_file(root: Path, executor: Executor) -> None:
    assert spills(root, executor, 0).new("cell") is None


async def test_the_newest_files_are_kept(root: Path, executor: Executor) -> None:
    made = []
    for number in range(KEPT + 3):
        spill = new(root, executor)
        spill.begin([str(number)])
        made.append((await spill.finish()).path)
    left = sorted(path.name for path in (root / ".kernelbridge/output").iterdir())
    assert left == [Path(path).name for path in made[-KEPT:] if path is not None]


async def test_old_files_do_not_add_up(root: Path, executor: Executor) -> None:
    for _ in range(6):
        spill = new(root, executor, 1000)
        spill.begin(["x" * 900])
        await spill.finish()
    assert len(list((root / ".kernelbridge/output").iterdir())) == 3


async def test_other_files_of_the_directory_stay(root: Path, executor: Executor) -> None:
    output = root / ".kernelbridge/output"
    output.mkdir(parents=True)
    (output / "notes.txt").write_text("mine")
    (output / "20200101T000000000000-cell-00000000.txt").mkdir()
    for _ in range(KEPT + 1):
        spill = new(root, executor)
        spill.begin(["x"])
        assert (await spill.finish()).complete
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("where", [".kernelbridge", ".kernelbridge/output"])
async def test_a_link_in_the_way_is_not_followed(root: Path, tmp_path: Path, executor: Executor, where: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / where).parent.mkdir(exist_ok=True)
    (root / where).symlink_to(elsewhere)
    spill = new(root, executor)
    spill.begin(["text"])
    spill.write("more")
    spilled = await spill.finish()
    assert (spilled.path, spilled.complete) == (None, False)
    assert list(elsewhere.iterdir()) == []


async def test_a_full_disk_ends_the_file(root: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", FullDisk(5000))
    spill = new(root, executor)
    spill.begin(["x" * 3000])
    spill.write("y" * 3000)
    spill.write("z")
    spilled = await spill.finish()
    monkeypatch.undo()
    assert not spilled.complete
    assert spilled.path is not None
    assert (root / spilled.path).read_text() == "x" * 3000 + "y" * 2000


async def test_a_frozen_disk_holds_up_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill_module, "PATIENCE", 0.05)
    with FrozenDisk() as frozen:
        spill = new(root, frozen, 64 << 20)
        spill.begin(["begun"])
        spilled = await spill.finish()
        assert (spilled.path, spilled.complete) == (None, False)
        frozen.thaw()
        await asyncio.gather(*spill._tasks._tasks)
    assert list((root / ".kernelbridge/output").iterdir()) == []


async def test_a_slow_disk_ends_the_file_where_too_much_waits(root: Path) -> None:
    part = "x" * (1 << 20)
    with FrozenDisk() as slow:
        spill = new(root, slow, 64 << 20)
        spill.begin(["begun"])
        for _ in range((BACKLOG >> 20) + 5):
            spill.write(part)
        slow.thaw()
        spilled = await spill.finish()
    assert not spilled.complete
    assert spilled.path is not None
    assert (root / spilled.path).read_text() == "begun" + part * (BACKLOG >> 20)


async def test_the_end_of_a_session_closes_its_files(root: Path) -> None:
    """Of runs that end with it, also if a thread is writing; nobody waits for them any more."""
    tasks = TaskSet()
    with FrozenDisk() as frozen:
        of_session = SpillFiles(lambda: files(root), frozen, tasks, limit=LIMIT, disk=unlimited(root))
        begun, finishing = of_session.new("cell"), of_session.new("command")
        assert begun is not None
        assert finishing is not None
        begun.begin(["begun"])
        finishing.begin(["finishing"])
        end = asyncio.create_task(finishing.finish())
        await asyncio.to_thread(frozen.started.wait, 20)
        end.cancel()
        ending = asyncio.create_task(tasks.aclose())
        frozen.thaw()
        await ending
        await of_session.aclose()
    assert (begun._file._fd, finishing._file._fd) == (-1, -1)
    assert "begun" in {path.read_text() for path in (root / ".kernelbridge/output").iterdir()}
