"""What is told of the end of a session's earlier life."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from msgspec import UNSET

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.lifecycle.closed_notes import MOST_CODE, ClosedNote, ClosedNotes, ran, read_note, write_note
from kernelbridge.workspace.session_key import SessionKey

AT = "2026-01-01T00:00:00.000Z"


def test_a_note_is_read_as_it_was_written() -> None:
    note = ClosedNote(AT, "the server stopped", [ran("cell", request_id="1", since=AT, code="x")], 2, interpreter=True)
    assert read_note(write_note(note)) == note


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"closed_at": "x"}', b"[" * 100_000, b"\xff"])
def test_a_damaged_note_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_note(content)


def test_its_size_is_bounded() -> None:
    entry = ran("cell", code="x" * 100_000)
    assert entry.code is not UNSET
    assert len(entry.code) == MOST_CODE


def test_a_note_says_what_ran_and_what_is_lost() -> None:
    note = ClosedNote(AT, "no client returned within 15 s")
    assert note.how() == f"ended when the session was closed at {AT}, because no client returned within 15 s"
    things = [ran("cell", code="\n  train()\nx"), ran("command", code="make"), ran("terminal", code="t1"), ran("cell")]
    note = ClosedNote(AT, "the server stopped", things, 1)
    ended = "; then a cell (train()), a terminal command (make), an interactive terminal (t1), a cell ran and was ended"
    assert note.how().endswith(f"because the server stopped{ended}; 1 answer that no client had received is lost")
    assert "; 3 answers that no client had received are lost; its files are kept" in ClosedNote(AT, "x", [], 3).detail()


def test_a_note_is_kept_until_both_losses_are_reported() -> None:
    assert ClosedNote(AT, "x", interpreter=True).unreported
    assert ClosedNote(AT, "x", shell=True).unreported
    assert not ClosedNote(AT, "x").unreported


class SlowDisk:
    """Writes notes when it is let go, in a thread."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.written: list[bytes | None] = []
        self.begun = threading.Event()
        self.full = False

    def write_closed_note(self, _key: SessionKey, content: bytes) -> None:
        self._wait()
        self.written.append(content)

    def remove_closed_note(self, _key: SessionKey) -> None:
        self._wait()
        self.written.append(None)

    def read_closed_note(self, _key: SessionKey) -> bytes | None:
        if self.full:
            raise OSError("broken")
        return self.written[-1] if self.written else None

    def _wait(self) -> None:
        self.begun.set()
        self.go.wait(60)
        if self.full:
            raise OSError("full")


KEY = SessionKey(Principal("ada"), "s")


@pytest.fixture
def disk() -> SlowDisk:
    return SlowDisk()


@pytest.fixture
async def notes(disk: SlowDisk) -> AsyncIterator[ClosedNotes]:
    with ThreadPoolExecutor(4) as executor:
        tasks = TaskSet()
        yield ClosedNotes(cast("Any", disk), executor, tasks)
        assert not tasks._tasks


async def test_the_latest_note_is_written_last_and_read_from_memory_until_then(
    notes: ClosedNotes, disk: SlowDisk
) -> None:
    first, second = ClosedNote(AT, "first"), ClosedNote(AT, "second")
    notes.put(KEY, first)
    await asyncio.to_thread(disk.begun.wait, 60)
    notes.put(KEY, second)
    notes.put(KEY, second)
    assert notes.get(KEY) == second
    disk.go.set()
    await notes.saved(KEY)
    await asyncio.sleep(0)  # the task's own end
    assert disk.written == [write_note(first), write_note(second)]
    assert notes.get(KEY) == second
    notes.put(KEY, None)
    assert notes.get(KEY) is None
    await notes.saved(KEY)
    assert disk.written[-1] is None
    await notes.saved(KEY)
    await asyncio.sleep(0)


async def test_a_disk_that_fails_raises_nothing(notes: ClosedNotes, disk: SlowDisk) -> None:
    disk.full = True
    disk.go.set()
    notes.put(KEY, ClosedNote(AT, "x"))
    await notes.saved(KEY)
    assert notes.get(KEY) is None
    await asyncio.sleep(0)
