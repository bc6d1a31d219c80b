"""Processes that an earlier server started: found again by what no other process has, and noted in files."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kernelbridge.runtimes.local.notes import Note, Notes
from kernelbridge.runtimes.local.pidfd import Identity, open_pidfd, send_signal, wait_for_end
from tests.contract.driving import descriptors


@pytest.fixture
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_a_process_is_found_again_and_ended(sleeping: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(sleeping.pid)
    assert identity is not None
    pidfd = identity.open()
    try:
        assert not wait_for_end(pidfd, 0)
        send_signal(pidfd, signal.SIGKILL)
        assert wait_for_end(pidfd, 60)
        assert sleeping.wait() == -signal.SIGKILL
        send_signal(pidfd, signal.SIGKILL)  # is nobody's any more
    finally:
        os.close(pidfd)
    assert Identity.of(sleeping.pid) is None
    with pytest.raises(ProcessLookupError):
        identity.open()
    with pytest.raises(ProcessLookupError):
        open_pidfd(sleeping.pid)


@pytest.mark.parametrize("field", ["started", "boot"])
def test_another_process_with_the_same_pid_is_not_meant(sleeping: subprocess.Popen[bytes], field: str) -> None:
    identity = Identity.of(sleeping.pid)
    assert identity is not None
    other = msgspec.structs.replace(identity, **{field: 1 if field == "started" else "another"})
    before = len(descriptors())
    with pytest.raises(ProcessLookupError):
        other.open()
    assert len(descriptors()) == before


def note(name: str) -> Note:
    return Note(name, "c0ffee", True, Identity(1, 2, "boot"), "/run/x", "/run/kernelbridge", "/workspace", None)  # noqa: FBT003


def test_notes_are_read_again_and_damaged_ones_removed(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    assert notes.read() == []
    notes.write(note("a"))
    notes.write(note("b"))
    (tmp_path / "notes" / "c.json").write_bytes(b"{")
    (tmp_path / "notes" / "d.json").write_bytes((tmp_path / "notes" / "a.json").read_bytes())
    (tmp_path / "notes" / "e.new").write_bytes(b"")  # the server was killed just then
    assert notes.read() == [note("a"), note("b")]
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == ["a.json", "b.json"]
    notes.remove("a")
    notes.remove("a")
    assert notes.read() == [note("b")]
