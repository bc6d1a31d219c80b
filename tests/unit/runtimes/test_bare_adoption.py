"""What a local runtime leaves to the next one, without isolation."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import ExitStatus, PreviousSandbox, SandboxSpec
from kernelbridge.runtimes.local.notes import Note, Notes
from kernelbridge.runtimes.local.pidfd import Identity
from kernelbridge.runtimes.local.runtime import LocalRuntime
from tests.contract.driving import PATIENCE, read_until, run

Open = Callable[[], LocalRuntime]


@pytest.fixture(params=["short", "l" * 80])
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The data directory; one with a long name needs a symlink for its sockets."""
    directory = Path(tempfile.mkdtemp(prefix="kb-unit-"), request.param)
    for name in ("w", "other"):
        HostDirectories(directory).files(name).mkdir(parents=True)
    yield directory
    shutil.rmtree(directory.parent)


@pytest.fixture
async def open_runtime(root: Path) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def start() -> LocalRuntime:
            runtime = LocalRuntime(instance="ba4e0002", directories=HostDirectories(root), isolation=False)
            stack.push_async_callback(runtime.aclose)
            return runtime

        yield start


async def test_a_kept_sandbox_serves_the_next_runtime_and_others_are_ended(open_runtime: Open, root: Path) -> None:
    first = open_runtime()
    kept, other = await first.create(SandboxSpec("w")), await first.create(SandboxSpec("other"))
    process = await kept.exec(["sh", "-c", "echo up; read word; echo got $word"], tty=True)
    await read_until(process, b"up")
    for sandbox in (kept, other):
        sandbox.outlive(PATIENCE)
    await first.aclose(keep=True)

    second = open_runtime()
    known = {"w": PreviousSandbox(kept.id, kept.facts), "gone": PreviousSandbox("gone", kept.facts)}
    adopted = await second.adopt(known)
    assert list(adopted) == ["w"]
    assert await second.reclaim() == 1
    assert await second.reclaim() == 0
    assert [path.name for path in (root / "run").iterdir()] == [kept.shared.host.name]
    taken = await adopted["w"].take(process.id)
    await taken.write(b"it\n")
    await read_until(taken, b"got it")
    assert await taken.wait() == ExitStatus(code=0)
    assert (await run(adopted["w"], "echo", "new")).output == "new\n"
    links = second._links._home()
    await adopted["w"].destroy()
    await second.aclose()
    assert links is None or not links.exists()
    assert (second._notes.read(), list((root / "run").iterdir())) == ([], [])


async def test_a_sandbox_of_another_workspace_or_kind_is_not_adopted(open_runtime: Open, root: Path) -> None:
    first = open_runtime()
    kept = await first.create(SandboxSpec("w"))
    kept.outlive(PATIENCE)
    await first.aclose(keep=True)
    second = open_runtime()
    assert await second.adopt({"other": PreviousSandbox(kept.id, kept.facts)}) == {}
    second._isolation = True
    assert await second.adopt({"w": PreviousSandbox(kept.id, kept.facts)}) == {}
    second._isolation = False
    assert await second.reclaim() == 1
    assert list((root / "run").iterdir()) == []


async def test_an_adopted_sandbox_that_ends_by_itself_is_noticed(open_runtime: Open) -> None:
    first = open_runtime()
    kept = await first.create(SandboxSpec("w"))
    kept.outlive(PATIENCE)
    await first.aclose(keep=True)
    second = open_runtime()
    (adopted,) = (await second.adopt({"w": PreviousSandbox(kept.id, kept.facts)})).values()
    (note,) = second._notes.read()
    os.kill(note.agent.pid, signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        assert (await adopted.wait()).code is None  # only the parent is told
    assert second._sandboxes == set()


async def test_nothing_is_left_of_a_sandbox_that_cannot_start(open_runtime: Open, root: Path) -> None:
    runtime = open_runtime()
    with pytest.raises(SandboxError, match="is not a directory"):
        await runtime.create(SandboxSpec("none"))
    assert list((root / "run").iterdir()) == []
    await runtime.aclose()
    with pytest.raises(SandboxError, match="the server is stopping"):
        await runtime.create(SandboxSpec("w"))


async def test_a_disk_that_takes_no_note_ends_the_start_and_the_sandbox(open_runtime: Open, root: Path) -> None:
    runtime = open_runtime()
    await runtime.prepare()
    notes = runtime._notes._directory
    shutil.rmtree(notes)
    notes.write_text("in the way")
    with pytest.raises(SandboxError, match="could not be started: File exists"):
        await runtime.create(SandboxSpec("w"))
    assert (list((root / "run").iterdir()), runtime._sandboxes) == ([], set())
    notes.unlink()


def note(name: str) -> Note:
    agent = Identity.of(os.getpid())
    assert agent is not None
    return Note(
        id=name,
        workspace_id="w",
        isolated=False,
        agent=agent,
        shared="/s",
        shared_path="/p",
        workspace_path="/w",
        link=None,
    )


def test_notes_are_read_again_and_a_damaged_one_is_removed(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "a/b")
    assert notes.read() == []
    notes.write(note("one"))
    notes.write(note("two"))
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "a/b/three.json").write_bytes((tmp_path / "a/b/one.json").read_bytes())
    (tmp_path / "a/b/four.json").write_text("{")
    assert notes.read() == [note("one"), note("two")]
    notes.remove("one")
    notes.remove("one")
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["two.json"]
