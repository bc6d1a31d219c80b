"""Changing files under conditions, renaming, deleting, transfers: what is exact about them, without a server."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from kernelbridge.disk.limits import DiskLimits
from kernelbridge.disk.session_disks import SessionDisks
from kernelbridge.errors import (
    BadRequest,
    DirectoryNotEmpty,
    DiskLimitReached,
    FileConflict,
    FileError,
    FileExists,
    FileTooLarge,
    IsDirectory,
    NoSuchFile,
    NotADirectory,
)
from kernelbridge.workspace.files import syscalls, versions
from kernelbridge.workspace.files.service import SessionFiles
from kernelbridge.workspace.files.store import FileLimits
from kernelbridge.workspace.files.versions import Commits, Condition
from tests.unit.workspace.files.at_once import Files

FRAME = 1 << 20
DISK = 8 * FRAME


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def files(root: Path) -> Files:
    return Files(root, uid=1234, gid=4321, limits=FileLimits(FRAME, 2 * FRAME), commits=Commits())


# -- saving under conditions ----------------------------------------------------


def test_of_many_creations_one_succeeds(files: Files, root: Path) -> None:
    ended: list[str] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        try:
            files.save("f", b"%d" % number, "create")
            ended.append(str(number))
        except FileExists:
            ended.append("refused")

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended.count("refused") == 7
    assert (root / "f").read_text() in ended
    assert [path.name for path in root.iterdir()] == ["f"]


def test_of_many_replacements_of_one_version_one_succeeds(files: Files, root: Path) -> None:
    first = files.save("f", b"first")
    ended: list[str] = []
    start = threading.Barrier(8)

    def replace(number: int) -> None:
        start.wait()
        try:
            files.save("f", b"%d" % number, if_match=first.sha256)
            ended.append(str(number))
        except FileConflict:
            ended.append("refused")

    threads = [threading.Thread(target=replace, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended.count("refused") == 7
    assert (root / "f").read_text() in ended


def test_appends_at_the_same_time_are_all_there(files: Files, root: Path) -> None:
    done: list[bytes] = []
    refused: list[bytes] = []

    def append(letter: bytes) -> None:
        for _ in range(10):
            try:
                files.save("log", letter * 10 + b"\n", "append")
                done.append(letter)
            except FileError as exc:
                assert exc.code in {"conflict", "exists"}  # noqa: PT017 - the others were faster three times
                refused.append(letter)

    threads = [threading.Thread(target=append, args=(bytes([65 + number]),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == 40
    # Three were faster than each that was refused, and none is faster than more than the three others at a time.
    assert len(done) >= len(refused)
    lines = (root / "log").read_bytes().splitlines()
    assert done, "each round has one that was first"
    assert sorted(lines) == sorted(letter * 10 for letter in done)


def test_an_append_keeps_the_old_bytes_when_it_fails(files: Files, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "f").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _fd: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(FileError, match="full"):
        files.save("f", b"new", "append")
    assert (root / "f").read_bytes() == b"old"
    assert [path.name for path in root.iterdir()] == ["f"]


def test_an_append_beyond_the_limit_copies_nothing(files: Files, root: Path) -> None:
    with (root / "f").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileTooLarge, match="the limit to append to"):
        files.save("f", b"x", "append")
    assert [path.name for path in root.iterdir()] == ["f"]


def test_a_change_between_the_look_and_the_rename_is_a_conflict(
    files: Files, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = files.save("f", b"first")

    def swapped(_fd: int) -> None:
        monkeypatch.undo()
        (root / "f").write_bytes(b"by a program in the sandbox")

    monkeypatch.setattr(os, "fsync", swapped)
    with pytest.raises(FileConflict, match="changed at the same moment"):
        files.save("f", b"mine", if_match=first.sha256)
    assert (root / "f").read_bytes() == b"by a program in the sandbox"


def test_a_condition_makes_no_directories(files: Files, root: Path) -> None:
    with pytest.raises(NoSuchFile):
        files.save("a/b/f", b"x", if_match=sha(b""))
    assert list(root.iterdir()) == []


def test_exclusive_names_without_renameat2(files: Files, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system, such as NFS, that has no RENAME_NOREPLACE."""

    def unable(*_args: object, **_options: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("kernelbridge.workspace.files.safe_open.rename_new", unable)
    files.save("f", b"x", "create")
    with pytest.raises(FileExists):
        files.save("f", b"y", "create")
    files.rename("f", "g", overwrite=False)
    assert (root / "g").read_bytes() == b"x"


# -- renaming and deleting ------------------------------------------------------


def test_what_a_rename_refuses(files: Files, root: Path) -> None:
    for name in ("f", "d/x", "e/y"):
        files.save(name, b"x")
    refused: tuple[tuple[str, str, bool, type[FileError]], ...] = (
        ("f", "d/x", False, FileExists),
        ("f", "f", False, FileExists),
        ("f", "d", True, IsDirectory),
        ("d", "f", True, NotADirectory),
        ("d", "e", True, IsDirectory),
        ("none", "n/m", False, NoSuchFile),
        ("f", "f/g", False, FileError),
        ("d", "d/inner/deeper", False, FileError),
        ("none/f", "g", False, NoSuchFile),
    )
    for source, target, overwrite, kind in refused:
        with pytest.raises(kind):
            files.rename(source, target, overwrite=overwrite)
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == ["d", "d/x", "e", "e/y", "f"]
    for source, target, field in (("", "x", "filename"), ("f", ".", "newFilename"), ("f", "../x", "newFilename")):
        with pytest.raises(BadRequest) as caught:
            files.rename(source, target, overwrite=False)
        assert caught.value.field == field


def test_a_link_is_renamed_and_deleted_as_a_link(files: Files, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").touch()
    (root / "link").symlink_to(tmp_path / "outside")
    files.rename("link", "other", overwrite=False)
    files.delete("other", recursive=True)
    assert (tmp_path / "outside" / "f").exists()
    assert list(root.iterdir()) == []


def test_deleting_a_deep_tree_needs_neither_stack_nor_descriptors(files: Files, root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    os.mkdir("top", dir_fd=fd)
    fd = os.open(root / "top", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(DirectoryNotEmpty):
        files.delete("top", recursive=False)
    files.delete("top", recursive=True)
    assert list(root.iterdir()) == []


def test_a_tree_that_cannot_be_deleted_gets_its_name_back(
    files: Files, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.save("d/f", b"x")

    def failing(name: str, **_options: object) -> None:
        raise OSError(5, "Input/output error", name)

    monkeypatch.setattr(os, "unlink", failing)
    with pytest.raises(FileError, match="input/output error"):
        files.delete("d", recursive=True)
    assert (root / "d" / "f").read_bytes() == b"x"


# -- transfers ------------------------------------------------------------------


@pytest.fixture
def session_files(files: Files) -> Iterator[SessionFiles]:
    async def prepared() -> Files:
        return files

    async def settled() -> None:
        pass

    with ThreadPoolExecutor(1) as executor:
        yield SessionFiles(
            files.root,
            prepared=prepared,
            settled=settled,
            executor=executor,
            max_frame=FRAME,
            disk=SessionDisks(DiskLimits(DISK)).session("", files.root),
        )


async def test_above_the_disk_limit_files_are_read_listed_renamed_and_deleted_but_not_saved(
    session_files: SessionFiles, root: Path
) -> None:
    (root / "big").write_bytes(b"x" * (DISK + 1))
    save = partial(session_files.save, "small", "x", encoding="utf-8", mode="overwrite", if_match=None)
    with pytest.raises(DiskLimitReached):
        await save()
    read = await session_files.read("big", encoding="utf-8", offset=0, length=3)
    assert (read.content, read.size) == ("xxx", DISK + 1)
    listed = await session_files.list("", recursive=True, hidden=False)
    assert [entry.path for entry in listed.entries] == ["big"]
    await session_files.rename("big", "large", overwrite=False)
    async with session_files.download("large") as download:
        assert await download.read(0, 3) == b"xxx"
    await session_files.delete("large", recursive=False)
    assert (await save()).created


async def test_an_upload_is_there_when_it_is_committed(session_files: SessionFiles, root: Path) -> None:
    async with session_files.upload("a/f", Condition()) as upload:
        await upload.write(b"one ")
        await upload.write(bytearray(b"two"))
        assert not (root / "a" / "f").exists()
        saved = await upload.commit()
    assert (saved.size, saved.sha256, saved.created) == (7, sha(b"one two"), True)
    assert [path.name for path in (root / "a").iterdir()] == ["f"]


async def test_an_upload_that_is_not_committed_leaves_nothing(
    files: Files, session_files: SessionFiles, root: Path
) -> None:
    files.save("f", b"old")
    async with session_files.upload("f", Condition()) as upload:
        await upload.write(b"new")
        with pytest.raises(FileTooLarge):
            await upload.write(bytes(2 * FRAME))
    assert (root / "f").read_bytes() == b"old"
    assert [path.name for path in root.iterdir()] == ["f"]


def test_a_version_changes_with_its_file(root: Path) -> None:
    def now() -> str:
        return versions.version((root / "f").stat())

    changes: tuple[Callable[[], object], ...] = (
        lambda: (root / "f").write_bytes(b"a"),
        lambda: (root / "f").write_bytes(b"ab"),
        lambda: (root / "g").write_bytes(b"ab"),
        lambda: os.replace(root / "g", root / "f"),  # noqa: PTH105 - beside the others
    )
    (root / "f").touch()
    seen = {now()}
    for change in changes:
        change()
        seen.add(now())
    assert len(seen) == 4


def test_inotify_says_nothing_when_nothing_happened(root: Path) -> None:
    fd = syscalls.inotify_init()
    directory = os.open(root, os.O_RDONLY)
    try:
        wd = syscalls.inotify_add_directory(fd, directory, syscalls.IN_CREATE)
        assert syscalls.inotify_read(fd, 4096) == []
        (root / "ä").touch()
        assert [(event.wd, event.name) for event in syscalls.inotify_read(fd, 4096)] == [(wd, "ä")]
        syscalls.inotify_remove(fd, wd)
        with pytest.raises(OSError, match="Invalid argument"):
            syscalls.inotify_remove(fd, wd)
    finally:
        os.close(directory)
        os.close(fd)
