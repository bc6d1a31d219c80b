"""What a shell is given to read: also when the disk is full, and whatever lies in the place of the reserve."""

import errno
import os
import stat
from pathlib import Path

import pytest

from kernelbridge.errors import TerminalError
from kernelbridge.workspace.shell.command_files import handed_over, make_reserve


class FullDisk:
    """Makes no new file, and opens those that there are."""

    def __init__(self, error: int) -> None:
        self._error = error
        self._open = os.open

    def __call__(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(self._error, os.strerror(self._error))
        return self._open(path, flags, mode)


def test_a_file_is_there_as_long_as_it_is_needed(tmp_path: Path) -> None:
    with handed_over(tmp_path / "a", b"echo\n"):
        assert (tmp_path / "a").read_bytes() == b"echo\n"
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_the_reserve_is_used_again_and_again_and_nothing_of_one_command_is_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    make_reserve(tmp_path)
    size = (tmp_path / "reserve").stat().st_size
    monkeypatch.setattr(os, "open", FullDisk(error))
    for command in (b"x" * size, b"echo\n", b"echo " + b"y" * 100):
        with handed_over(tmp_path / "a", command):
            assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
            assert (tmp_path / "a").read_bytes().rstrip(b"\n") == command.rstrip(b"\n")
            assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644
        assert [(entry.name, entry.stat().st_size) for entry in tmp_path.iterdir()] == [("reserve", size)]


def test_what_is_too_long_for_the_reserve_is_refused_and_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_reserve(tmp_path)
    monkeypatch.setattr(os, "open", FullDisk(errno.ENOSPC))
    size = (tmp_path / "reserve").stat().st_size
    full = pytest.raises(TerminalError, match="disk of the server's data directory is full")
    with full, handed_over(tmp_path / "a", b"x" * (size + 1)):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["reserve"]


def test_without_a_reserve_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", FullDisk(errno.ENOSPC))
    with pytest.raises(TerminalError, match="is full"), handed_over(tmp_path / "a", b"x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_the_place_of_the_reserve_is_not_waited_for_and_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, commands = tmp_path / "outside", tmp_path / "commands"
    outside.touch()
    commands.mkdir()
    monkeypatch.setattr(os, "open", FullDisk(errno.ENOSPC))
    for fifo in (True, False):
        if fifo:
            os.mkfifo(commands / "reserve")
        else:
            (commands / "reserve").symlink_to(outside)
        with pytest.raises(TerminalError), handed_over(commands / "a", b"x"):
            pass
        assert list(commands.iterdir()) == []
    assert outside.read_bytes() == b""
