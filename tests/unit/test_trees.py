"""Whatever a user leaves in a directory, it goes, and nothing else does."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge import trees
from kernelbridge.trees import remove_tree


def test_a_missing_directory_is_no_error(tmp_path: Path) -> None:
    remove_tree(tmp_path / "missing")


def test_files_links_and_directories_go_and_what_links_point_at_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "link").symlink_to(outside)
    (top / "link").symlink_to(outside)
    (top / "a" / "hard").hardlink_to(outside / "kept")
    os.mkfifo(top / "a" / "fifo")
    remove_tree(top)
    assert not top.exists()
    assert (outside / "kept").read_text() == "x"


@pytest.mark.parametrize("place", [".", "inner"])
def test_what_is_added_meanwhile_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """By somebody who had the directory open before."""
    (tmp_path / "top" / "inner").mkdir(parents=True)
    opened = os.open(tmp_path / "top" / place, os.O_RDONLY)
    rmdir = os.rmdir
    added: list[str] = []

    def rmdir_just_behind(path: str | Path, *, dir_fd: int | None = None) -> None:
        if len(added) < 3 and os.stat(path, dir_fd=dir_fd).st_ino == os.fstat(opened).st_ino:
            added.append(f"added{len(added)}")
            os.close(os.open(added[-1], os.O_WRONLY | os.O_CREAT, dir_fd=opened))
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir_just_behind)
    try:
        remove_tree(tmp_path / "top")
    finally:
        os.close(opened)
    assert len(added) == 3
    assert not (tmp_path / "top").exists()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("becomes", ["nothing", "a file", "a link"])
def test_a_directory_that_somebody_else_removes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int, becomes: str
) -> None:
    top = tmp_path / "top"
    going = top / "outer" / "going" if depth == 2 else top / "going"
    (going / "inner").mkdir(parents=True)
    looked = trees._is_directory

    def vanishing(name: str, parent: int) -> bool:
        found = looked(name, parent)
        if name == "going" and found:
            shutil.rmtree(going)
            if becomes == "a file":
                going.touch()
            elif becomes == "a link":
                going.symlink_to(tmp_path)
        return found

    monkeypatch.setattr(trees, "_is_directory", vanishing)
    remove_tree(top)
    assert not top.exists()
    assert tmp_path.exists()


def test_a_directory_that_is_filled_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top").mkdir()
    rmdir = os.rmdir

    def rmdir_just_behind(path: str | Path, *, dir_fd: int | None = None) -> None:
        (tmp_path / "top" / "added").touch()
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir_just_behind)
    with pytest.raises(OSError, match="filled as fast as it is emptied"):
        remove_tree(tmp_path / "top")


def test_a_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="Not a directory"):
        remove_tree(tmp_path / "link")


def test_any_depth(tmp_path: Path) -> None:
    """Deeper than the stack, the descriptors and the longest path."""
    deep = "import os\nfor _ in range(5000): os.mkdir('d'); os.chdir('d')"
    (tmp_path / "top").mkdir()
    subprocess.run(["python3", "-c", deep], cwd=tmp_path / "top", check=True)
    remove_tree(tmp_path / "top")
    assert not (tmp_path / "top").exists()


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A directory of a user without rights, as whom the test then runs."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        if root:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


def test_directories_that_are_closed_to_their_owner(nobody: Path) -> None:
    top = nobody / "top"
    (top / "closed" / "inner").mkdir(parents=True)
    (top / "closed" / "file").touch()
    (top / "closed" / "inner").chmod(0o500)
    (top / "closed").chmod(0)
    remove_tree(top)
    assert not top.exists()
