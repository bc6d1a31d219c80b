"""Disks that fail: the old file is intact, nothing is left over, and the reason is named."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge.aio.threads import BlockingWork
from kernelbridge.errors import FileError
from kernelbridge.trees import emptying
from kernelbridge.workspace.files.store import FileLimits
from kernelbridge.workspace.files.versions import Commits
from tests.unit.workspace.files.at_once import Files


class FailingFsync:
    """A disk that takes the data and then cannot keep it."""

    def __init__(self, error: int) -> None:
        self._error = error

    def __call__(self, _fd: int) -> None:
        raise OSError(self._error, os.strerror(self._error))


class ShortWrites:
    """A disk that takes a few bytes at a time."""

    def __init__(self) -> None:
        self._write = os.write

    def __call__(self, fd: int, data: memoryview) -> int:
        return self._write(fd, data[:7])


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def workspace(root: Path) -> Files:
    return Files(root, uid=1234, gid=4321, limits=FileLimits(1 << 20, 1 << 20), commits=Commits())


def test_a_full_disk_leaves_the_old_file(tiny_disk: Path) -> None:
    files = workspace(tiny_disk)
    files.save("main.py", b"old")
    with pytest.raises(FileError, match="disk that holds the workspace is full; delete files"):
        files.save("main.py", b"x" * 200_000)
    assert (tiny_disk / "main.py").read_bytes() == b"old"
    assert list(tiny_disk.iterdir()) == [tiny_disk / "main.py"]
    files.save("main.py", b"new")
    assert (tiny_disk / "main.py").read_bytes() == b"new"


def test_a_read_only_disk_is_named(tiny_disk: Path) -> None:
    files = workspace(tiny_disk)
    files.save("main.py", b"old")
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    for name in ("main.py", "new/file"):
        with pytest.raises(FileError, match="read-only file system"):
            files.save(name, b"new")
    assert (tiny_disk / "main.py").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("error", "reason"), [(errno.EIO, "input/output error"), (errno.EDQUOT, "quota of the workspace is used up")]
)
def test_a_file_that_cannot_be_made_durable_does_not_replace_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, reason: str
) -> None:
    files = workspace(tmp_path)
    files.save("main.py", b"old")
    monkeypatch.setattr(os, "fsync", FailingFsync(error))
    with pytest.raises(FileError, match=reason):
        files.save("main.py", b"new")
    assert (tmp_path / "main.py").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "main.py"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", ShortWrites())
    workspace(tmp_path).save("data", bytes(range(100)))
    assert (tmp_path / "data").read_bytes() == bytes(range(100))


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = workspace(tmp_path)
    files.save("a/b/c", b"x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    files.save("a/b/c", b"y")
    for name in ("a/b", "a/b/c/d"):
        with pytest.raises(FileError):
            files.save(name, b"x")
    monkeypatch.setattr(os, "fsync", FailingFsync(errno.EIO))
    with pytest.raises(FileError):
        files.save("new/c", b"y")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class LateWriter:
    """A program that has had a directory open since before it was to be deleted, and puts something into it."""

    def __init__(self, times: int) -> None:
        self._left = times

    def __call__(self, top: int, limit: int) -> BlockingWork[None]:
        yield from emptying(top, limit)
        if self._left:
            self._left -= 1
            os.mkdir("late", dir_fd=top)


def test_a_directory_that_is_still_written_to_is_deleted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = workspace(tmp_path)
    files.save("tree/a/b", b"old")
    monkeypatch.setattr("kernelbridge.workspace.files.store.emptying", LateWriter(3))
    files.delete("tree", recursive=True)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_written_to_for_ever_is_left_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = workspace(tmp_path)
    files.save("tree/a/b", b"old")
    monkeypatch.setattr("kernelbridge.workspace.files.store.emptying", LateWriter(1000))
    with pytest.raises(FileError, match="'tree' was not deleted: the directory is not empty"):
        files.delete("tree", recursive=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
