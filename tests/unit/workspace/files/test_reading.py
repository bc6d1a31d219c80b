"""Reading and listing: what is exact about them, without a server."""

import fcntl
import hashlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Raw

from kernelbridge.errors import (
    FileError,
    FileTooLarge,
    IsDirectory,
    NoSuchFile,
    NotADirectory,
    NotAFile,
    NotText,
)
from kernelbridge.workspace.files.listing import listing
from kernelbridge.workspace.files.reading import Content, read
from tests.unit.workspace.files.at_once import finish

FRAME = 1 << 20


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def text(root: Path, offset: int = 0, length: int | None = None) -> Content:
    return read(root, "f", encoding="utf-8", offset=offset, length=length, max_frame=FRAME)


@pytest.fixture
def leased(root: Path) -> Iterator[None]:
    """A program has a lease on the file `f`, and does not hear that it should give it back."""
    (root / "f").write_text("text")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with (root / "f").open("r+") as held:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    signal.signal(signal.SIGIO, before)


@pytest.mark.usefixtures("leased")
def test_a_file_on_which_a_program_has_a_lease_is_not_waited_for(root: Path) -> None:
    with pytest.raises(FileError, match="holds a lease on it"):
        text(root)


# -- reading --------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 100])
def test_ranges_of_text_are_whole_characters_and_go_on_where_the_last_one_ended(root: Path, length: int) -> None:
    whole = "aé漢🎉z" * 3
    (root / "f").write_text(whole)
    size = len(whole.encode())
    for offset in range(size):
        part = text(root, offset, length)
        assert part.offset <= offset < part.offset + part.length
        assert part.content.encode() == whole.encode()[part.offset : part.offset + part.length]
        assert part.offset + part.length >= min(offset + length, size)
    at, pieces = 0, []
    while at < size:
        part = text(root, at, length)
        assert part.offset == at
        pieces.append(part.content)
        at += part.length
    assert "".join(pieces) == whole


def test_ranges_beyond_the_end_are_empty(root: Path) -> None:
    (root / "f").write_text("é")
    assert text(root, 2) == Content("", 2, 0, 2, None, Raw(b'""'))
    assert text(root, 2**53 - 1, 2**53 - 1).length == 0
    assert text(root, 0, 0).length == 0
    (root / "f").write_text("")
    assert text(root) == Content("", 0, 0, 0, sha(b""), Raw(b'""'))


def test_a_file_that_is_not_text_is_refused_with_the_place(root: Path) -> None:
    (root / "f").write_bytes(b"ab\xff\x80\x80\x80\x80\x80cd")
    with pytest.raises(NotText, match="not UTF-8 at byte 2"):
        text(root)
    with pytest.raises(NotText, match="at byte 2"):
        text(root, 2, 1)
    assert text(root, 8).content == "cd"


def test_a_file_that_does_not_fit_into_a_frame_is_refused_with_a_remedy(root: Path) -> None:
    (root / "f").write_bytes(b"\x01" * (FRAME // 2))
    with pytest.raises(FileTooLarge, match=r"read it in parts with offset and length, or whole by HTTP"):
        text(root)
    assert text(root, 0, FRAME // 8).length == FRAME // 8
    os.truncate(root / "f", 1 << 40)
    with pytest.raises(FileTooLarge):
        read(root, "f", encoding="base64", offset=0, length=None, max_frame=FRAME)


def test_only_regular_files_are_opened(root: Path, tmp_path: Path) -> None:
    (root / "d").mkdir()
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    (root / "link").symlink_to(tmp_path)
    expected: dict[str, type[FileError]] = {
        "d": IsDirectory,
        "fifo": NotAFile,
        "device": NotAFile,
        "link": NotAFile,
        "none": NoSuchFile,
        "none/f": NoSuchFile,
        "link/f": NotADirectory,
    }
    for name, kind in expected.items():
        with pytest.raises(kind) as caught:
            read(root, name, encoding="utf-8", offset=0, length=None, max_frame=FRAME)
        assert type(caught.value) is kind
    with pytest.raises(NoSuchFile):
        read(root / "gone", "f", encoding="utf-8", offset=0, length=None, max_frame=FRAME)


def test_a_file_that_shrinks_or_grows_while_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "f").write_bytes(b"x" * 1000)
    pread = os.pread

    def shrinking(fd: int, length: int, offset: int) -> bytes:
        os.truncate(root / "f", 10)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", shrinking)
    found = text(root)
    assert (found.content, found.length, found.size, found.sha256) == ("x" * 10, 10, 10, None)

    def growing(fd: int, length: int, offset: int) -> bytes:
        with (root / "f").open("ab") as file:
            file.write(b"y")
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", growing)
    found = text(root)
    assert (found.content, found.sha256) == ("x" * 10, None)
    assert found.size > 10


# -- listing --------------------------------------------------------------------


def test_a_list_is_bounded_and_near_entries_come_first(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    for name in ("a/b/deep", "a/x", "z"):
        (root / name).touch()
    found = finish(listing(root, "", recursive=True, hidden=False, limit=3))
    assert ([entry.path for entry in found.entries], found.truncated) == (["a", "a/b", "z"], True)
    found = finish(listing(root, "", recursive=True, hidden=False, limit=5))
    assert ([entry.path for entry in found.entries], found.truncated) == (["a", "a/b", "a/b/deep", "a/x", "z"], False)
    found = finish(listing(root, "", recursive=True, hidden=False, max_looks=4))
    assert found.truncated


def test_a_tree_deeper_than_any_path_ends(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    found = finish(listing(root, "", recursive=True, hidden=True))
    assert found.truncated
    assert max(len(entry.path) for entry in found.entries) <= 4096


def test_a_loop_of_links_is_listed_as_links(root: Path) -> None:
    (root / "loop").symlink_to(".")
    (root / "d").mkdir()
    (root / "d" / "up").symlink_to("..")
    found = finish(listing(root, "", recursive=True, hidden=True))
    assert [(entry.path, entry.kind) for entry in found.entries] == [
        ("d", "directory"),
        ("d/up", "symlink"),
        ("loop", "symlink"),
    ]


def test_names_and_times_that_no_message_can_carry(root: Path) -> None:
    for name in (b"\xff\xfe", b"old", b"far"):
        fd = os.open(os.fsencode(root) + b"/" + name, os.O_CREAT | os.O_WRONLY)
        os.close(fd)
    os.utime(root / "old", ns=(-(10**18), -(10**18)))
    os.utime(root / "far", (15_000_000_000, 15_000_000_000))
    found = {entry.path: entry for entry in finish(listing(root, "", recursive=False, hidden=False)).entries}
    assert found.keys() == {"\ufffd\ufffd", "old", "far"}
    assert all(entry.modified.endswith("Z") for entry in found.values())


def test_the_bridges_unfinished_files_are_not_listed(root: Path) -> None:
    (root / f".{'0' * 32}.part").touch()
    assert finish(listing(root, "", recursive=True, hidden=True)).entries == []
