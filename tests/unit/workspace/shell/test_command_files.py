"""The files that a sandbox's shells read: also when the disk is full, and whatever lies in the place of one."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge.errors import TerminalError
from kernelbridge.workspace.shell.command_files import ROOM, TERMINAL_SETUP, overwrite, prepare_directory
from kernelbridge.workspace.shell.script import COMMAND, POSIX_KEYS, SETUP
from tests.faults.full_disk import SmallDisk, small_disk


def test_a_command_replaces_the_one_before_it_and_keeps_its_file(tmp_path: Path) -> None:
    previous = os.umask(0o077)
    try:
        prepare_directory(tmp_path)
    finally:
        os.umask(previous)
    path = tmp_path / COMMAND
    inode = path.stat().st_ino
    for command in (b"echo long" + b"x" * 2 * ROOM, b"ls\n"):
        overwrite(path, command)
        assert path.read_bytes() == command
    assert (path.stat().st_ino, stat.S_IMODE(path.stat().st_mode)) == (inode, 0o644)


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    """A sandbox may have been prepared by an older server, or its shell may be reading a file."""
    prepare_directory(tmp_path)
    overwrite(tmp_path / COMMAND, b"ls\n")
    (tmp_path / TERMINAL_SETUP).unlink()
    prepare_directory(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([COMMAND, SETUP, TERMINAL_SETUP, POSIX_KEYS[0]])
    assert (tmp_path / COMMAND).read_bytes() == b"ls\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.parametrize("full_of", ["bytes", "names"])
def test_a_short_command_needs_no_room_on_a_full_disk(disk: SmallDisk, full_of: str) -> None:
    prepare_directory(disk.root)
    path = disk.root / COMMAND
    disk.fill(full_of)
    for command in (b"x\n", b"x" * ROOM, b"ls\n", b"x" * ROOM):
        overwrite(path, command)
        assert path.read_bytes() == command


def test_a_long_command_on_a_full_disk_is_refused_and_the_next_short_one_is_not(disk: SmallDisk) -> None:
    prepare_directory(disk.root)
    disk.fill("bytes")
    with pytest.raises(TerminalError, match="disk of the server's data directory is full"):
        overwrite(disk.root / COMMAND, b"x" * 2 * ROOM)
    overwrite(disk.root / COMMAND, b"rm ballast/*\n")
    assert (disk.root / COMMAND).read_bytes() == b"rm ballast/*\n"


def test_what_lies_in_the_place_of_a_file_is_not_waited_for_and_not_followed(tmp_path: Path) -> None:
    outside, path = tmp_path / "outside", tmp_path / COMMAND
    outside.touch()
    for fifo in (True, False):
        if fifo:
            os.mkfifo(path)
        else:
            path.symlink_to(outside)
        with pytest.raises(TerminalError, match="could not be handed over"):
            overwrite(path, b"x")
        path.unlink()
    assert outside.read_bytes() == b""
