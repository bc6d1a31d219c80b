"""Saving: what a file is afterwards, and which names are none."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from kernelbridge.errors import BadRequest, FileError
from kernelbridge.workspace.files.names import relative_parts
from kernelbridge.workspace.files.store import FileLimits
from kernelbridge.workspace.files.versions import Commits
from tests.unit.workspace.files.at_once import Files

UID, GID = 1234, 4321


@pytest.fixture
def files(root: Path) -> Files:
    return Files(root, uid=UID, gid=GID, limits=FileLimits(1 << 20, 1 << 20), commits=Commits())


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_a_saved_file_is_there_with_its_hash(files: Files, root: Path) -> None:
    saved = files.save("main.py", b"print(1)\n")
    assert (root / "main.py").read_bytes() == b"print(1)\n"
    assert saved.size == 9
    assert saved.sha256 == hashlib.sha256(b"print(1)\n").hexdigest()
    assert everything(root) == {"main.py"}


def test_parents_are_made_and_belong_to_the_sandbox_user(files: Files, root: Path) -> None:
    previous = os.umask(0o077)
    try:
        files.save("a/b/c.txt", b"x")
    finally:
        os.umask(previous)
    for path, mode in (("a", 0o755), ("a/b", 0o755), ("a/b/c.txt", 0o644)):
        found = (root / path).lstat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (UID, GID, mode)


def test_existing_parents_stay_as_they_are(files: Files, root: Path) -> None:
    (root / "a").mkdir(mode=0o700)
    before = (root / "a").lstat()
    files.save("a/b", b"x")
    after = (root / "a").lstat()
    assert (after.st_mode, after.st_uid, after.st_ino) == (before.st_mode, before.st_uid, before.st_ino)


@pytest.mark.parametrize("mode", [0o755, 0o600, 0o444, 0o000, 0o640])
def test_permission_bits_are_kept(files: Files, root: Path, mode: int) -> None:
    files.save("run.sh", b"old")
    (root / "run.sh").chmod(mode)
    files.save("run.sh", b"new")
    assert stat.S_IMODE((root / "run.sh").lstat().st_mode) == mode
    assert (root / "run.sh").read_bytes() == b"new"


def test_set_user_id_is_not_kept(files: Files, root: Path) -> None:
    (root / "su").write_bytes(b"old")
    (root / "su").chmod(0o6755)
    files.save("su", b"new")
    assert stat.S_IMODE((root / "su").lstat().st_mode) == 0o755


@pytest.mark.parametrize("data", [b"", b"\0\xff\xfe", b"x" * (1 << 20)])
def test_any_bytes_up_to_the_limit(files: Files, root: Path, data: bytes) -> None:
    files.save("data", data)
    assert (root / "data").read_bytes() == data


def test_a_file_over_the_limit_leaves_the_old_one(files: Files, root: Path) -> None:
    files.save("data", b"old")
    with pytest.raises(FileError, match="1048577 bytes and the limit is 1048576"):
        files.save("data", b"x" * ((1 << 20) + 1))
    assert (root / "data").read_bytes() == b"old"


@pytest.mark.parametrize(
    "name",
    [
        "ü/漢字/🎉.py",
        "a b\tc\n.txt",
        "back\\slash\\..\\x",
        "...",
        "..a/b..",
        "-rf",
        "a" * 255,
        "é" * 127,
        "C:",
        "/".join(["d" * 99] * 40) + "/f",
    ],
)
def test_unusual_names_are_only_names(files: Files, root: Path, name: str) -> None:
    files.save(name, b"x")
    fd = os.open(root, os.O_RDONLY)
    *parents, last = name.split("/")
    for part in parents:
        below = os.open(part, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert os.stat(last, dir_fd=fd).st_size == 1
    os.close(fd)


def test_dots_and_doubled_slashes_inside_mean_nothing() -> None:
    assert relative_parts("./a//b/./c") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is empty"),
        ("/etc/passwd", "it is absolute"),
        ("../x", r"contains '\.\.'"),
        ("a/../b", r"contains '\.\.'"),
        ("a/..", r"contains '\.\.'"),
        (".", "names a directory"),
        ("a/", "names a directory"),
        ("a/.", "names a directory"),
        ("a\0b", "NUL"),
        ("a\ud800", "surrogate"),
        ("\udc80/b", "surrogate"),
        ("a" * 256, "longer than 255 bytes"),
        ("é" * 128, "longer than 255 bytes"),
        ("a/" * 2048 + "b", "4097 bytes and the limit is 4096"),
    ],
)
def test_a_path_that_is_not_relative_is_refused(files: Files, root: Path, name: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason) as caught:
        files.save(name, b"x")
    assert caught.value.field == "filename"
    assert everything(root) == set()


def test_a_directory_is_not_replaced(files: Files, root: Path) -> None:
    (root / "a").mkdir()
    with pytest.raises(FileError, match="a directory of that name exists"):
        files.save("a", b"x")
    with pytest.raises(FileError, match="a directory of that name exists"):
        files.symlink("a", "b")
    assert everything(root) == {"a"}


def test_a_file_is_no_parent(files: Files, root: Path) -> None:
    files.save("a", b"x")
    with pytest.raises(FileError, match="'a' is a file; a file's parents must be real directories"):
        files.save("a/b", b"x")
    assert everything(root) == {"a"}


def test_directories_are_made_once_and_again(files: Files, root: Path) -> None:
    files.mkdir(".local/lib/python3.11/site-packages")
    files.mkdir(".local/lib/python3.11/site-packages")
    assert (root / ".local/lib/python3.11/site-packages").lstat().st_uid == UID
    files.save("file", b"")
    with pytest.raises(FileError, match="The directory 'file' was not made: 'file' is a file"):
        files.mkdir("file")


def test_a_file_of_the_bridge_has_the_mode_that_is_asked_for(files: Files, root: Path) -> None:
    files.save("bin/pip", b"old")
    files.write_private("bin/pip", b"#!/bin/sh\n", 0o755)
    found = (root / "bin/pip").lstat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, UID, GID)
    assert (root / "bin/pip").read_bytes() == b"#!/bin/sh\n"


def test_a_link_is_made_and_made_again(files: Files, root: Path) -> None:
    files.symlink("bin/python", "/nowhere/python")
    files.symlink("bin/python", "/usr/bin/python3")
    assert (root / "bin/python").readlink() == Path("/usr/bin/python3")
    assert (root / "bin/python").lstat().st_uid == UID
    assert everything(root) == {"bin", "bin/python"}
