"""What is told to be done is on the disk: every directory that was changed is synced, and behind its last change."""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelbridge.workspace.files.store import FileLimits
from kernelbridge.workspace.files.versions import Commits
from tests.unit.workspace.files.at_once import Files


class SyncRecorder:
    """A disk that remembers what it was asked to keep: the names in a directory, the bytes of a file."""

    def __init__(self) -> None:
        self.directories: dict[str, list[str]] = {}
        self.contents: list[bytes] = []
        self._fsync = os.fsync

    def __call__(self, fd: int) -> None:
        self._fsync(fd)
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self.directories[str(path)] = sorted(os.listdir(fd))
        else:
            self.contents.append(path.read_bytes())


def durable(root: Path, disk: SyncRecorder, *changed: str) -> None:
    """See that these directories are on the disk as they are now."""
    for name in changed:
        path = root / name
        assert disk.directories.get(str(path)) == sorted(entry.name for entry in path.iterdir()), name


Change = Callable[[Files], object]


@pytest.mark.parametrize(
    ("change", "directories", "content"),
    [
        (lambda files: files.save("new", b"1"), [""], b"1"),
        (lambda files: files.save("old", b"2"), [""], b"2"),
        (lambda files: files.save("a/b/new", b"3"), ["", "a", "a/b"], b"3"),
        (lambda files: files.save("new", b"4", mode="create"), [""], b"4"),
        (lambda files: files.save("old", b"5", mode="append"), [""], b"old5"),
        (lambda files: files.save("old", b"6", if_match=hashlib.sha256(b"old").hexdigest()), [""], b"6"),
        (lambda files: files.delete("old", recursive=False), [""], None),
        (lambda files: files.delete("empty", recursive=False), [""], None),
        (lambda files: files.delete("full", recursive=True), [""], None),
        (lambda files: files.rename("old", "named", overwrite=False), [""], None),
        (lambda files: files.rename("full/file", "empty/file", overwrite=False), ["full", "empty"], None),
        (lambda files: files.rename("old", "made/here", overwrite=False), ["", "made"], None),
        (lambda files: files.rename("old", "full/file", overwrite=True), ["", "full"], None),
        (lambda files: files.mkdir("c/d"), ["", "c"], None),
    ],
)
def test_a_changed_directory_is_synced_after_the_change(
    change: Change, directories: list[str], content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path, uid=os.getuid(), gid=os.getgid(), limits=FileLimits(1 << 20, 1 << 20), commits=Commits())
    files.save("old", b"old")
    files.save("full/file", b"file")
    files.mkdir("empty")
    disk = SyncRecorder()
    monkeypatch.setattr(os, "fsync", disk)
    change(files)
    durable(tmp_path, disk, *directories)
    assert content is None or content in disk.contents
